"""Outputs that take back, bound, deny or spell out what they say, as `scoring_cases` has them."""

# (output, label) among the four options of `scoring_cases`
CHOICES = (
    ("B... wait, actually C", "C"),
    ("B? No, C", "C"),
    ("Initially B, but on reflection C.", "C"),
    ("either B or C, but I lean C", "C"),
    ("The answer is B, but I would choose C", "C"),
    ("Actually, the tap is open, so B", "B"),
    ("Everything but B", None),
    ("B and also C", None),
    ("It isn't A or C, so it must be B", "B"),
    ("A, C and D can be excluded, leaving B", "B"),
    ("B, C is wrong", "B"),
    ("Not A, B", "B"),
    ("While A seems plausible, B is better", "B"),
    ("A is tempting but B", "B"),
    ("$$B$$", "B"),
    ("|B|", "B"),
    ("Ⓑ", "B"),
    ("La respuesta correcta es la B", "B"),
    ("A > B > C", None),
    ("<b>B</b>", "B"),
    ("the red ball falls off the table", "A"),
    ("dog knocks the cup over", "C"),
    ("A cup is filled with water", "B"),
    ("A dog", None),
    ("The ball doesn't fall; nothing changes", "D"),
    ("not the cup is filled with water but nothing changes", "D"),
)
# options, (output, label)
OTHER_OPTIONS = (
    (("A. 2", "B. 4", "C. 12"), (("four", "B"), ("twelve", "C"), ("2 and 2, so 4", "B"),
                                 ("2 or 4", None), ("4, not 2", "B"))),
    (("A. left", "B. left to right", "C. right"), (
        ("not left but right", "C"), ("it moves left to right", "B"), ("to the left", "A"),
        ("left, then right", None))),
    (("A. Red", "B. Dark red", "C. Blue"), (
        ("not blue, red", "A"), ("It is dark red", "B"), ("red or blue", None))),
    (("A. Yes", "B. No"), (("Yes, there is no car", "A"), ("No, it isn't", "B"))),
    (("A. $x^2$", "B. $x^3$"), (("x²", "A"), ("x^3", "B"), ("x", None))),
)  # fmt: skip
# (output, number)
NUMBERS = (
    ("3,5", 3.5),
    ("one and a half", 1.5),
    ("2 and a half", 2.5),
    ("minus 4", -4),
    ("minus three", -3),
    ("10^2", 100),
    ("10^{3}", 1000),
    ("4 ± 1", 4),
    ("There are 2 chairs and 2 sofas, so 4", 4),
    ("none", 0),
    ("There are no chairs in the room.", 0),
    ("No idea", None),
    ("more than 4", None),
    ("at least 4", None),
    ("not 4", None),
    ("4, not 5", 4),
    ("a single chair", 1),
    ("a pair of shoes", 2),
    ("twice", 2),
    ("1 200", 1200),
    ("3 objects: a cup, 2 plates", 3),
    ("Based on the 8 frames, there are 4 chairs", 4),
    ("4 chairs are visible, 2 of them red", 4),
    ("5 pictures", 5),
)
# (output, what it says)
YES_NO = (
    ("Absolutely", "yes"),
    ("I think so", "yes"),
    ("I don't think so", "no"),
    ("Not at all", "no"),
    ("Y", "yes"),
    ("N", "no"),
    ("Yes? No.", "no"),
    ("maybe", None),
)
# (gold, output, score)
OPEN_ENDED = (
    ("0.25", "25%", 1.0),
    ("0.25", "26%", 0.0),
    ("3 cm", "3 centimeters", 1.0),
    ("3 cm", "3 meters", 0.0),
    ("$5", "5 dollars", 1.0),
    ("-5", "minus five", 1.0),
    ("yes", "Yes, it is", 1.0),
    ("no", "Yes, it is", 0.0),
)
SPANS = (
    ("[24, 30]", "24秒到30秒", 1.0),
    ("[24, 30]", "00:00:24,000 --> 00:00:30,000", 1.0),
)
