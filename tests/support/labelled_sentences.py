"""Sentences of chains, labelled by hand: those that tell of notes, and look-alikes that do not."""

LEAKING = """
The caption says that a man walks in.
According to the description, she waves.
The video description mentions a red car.
As described, the ball falls.
The scene is described as a kitchen.
According to the notes, he leaves.
The notes mention two dogs.
The metadata shows a park.
The key elements are a cup and a table.
The JSON lists three frames.
The provided text tells of a dog.
The given information suggests rain.
Based on the frames provided, he sits.
A bird is there [Uncertain].
At 00:00:12 the door opens.
The man enters at 0:05 and leaves.
He falls at 12 s.
She turns around at about 3.5 seconds.
From 2 seconds on, it rains.
The timestamp shows the start.
At second 7 he jumps.
In frame 7 the cup is gone.
Frame #3 shows a dog.
The first frame shows a street.
In the next frame he is gone.
The last frame makes it plain.
The bounding box covers the left half.
Its coordinates are in the corner.
The cat is at [10, 20, 30, 40].
It lies at (0.1, 0.2, 0.5, 0.9) in the picture.
Object 3 is the ball.
I simulate watching the video.
As instructed, I go on.
The instructions ask for the end.
The notable_features show a sign.
Each frame caption speaks of snow.
The captions list a horse.
The image description shows a tower.
These frames listed show a cat.
Listed frames show the same.
The caption of the second part mentions a dog.
Judging by the captions, nobody leaves.
One of the captions mentions a bicycle.
The video caption tells of a birthday party.
From the description it is clear that he is tired.
The descriptions agree on the colour of the car.
The given description leaves out the last part.
It is described in the notes that she laughs.
The notes list a cup, a spoon and a plate.
As the notes state, the light goes off.
According to the note, the boy falls.
The metadata gives a length of ten seconds.
Among the key elements there is a ladder.
The notable_features field is null.
In the JSON there is a field for the scene.
The schema has a list of actions.
The provided information does not say who wins.
The provided description speaks of a blue ball.
The supplied frames show a beach.
Based on the given context, it is a kitchen.
The frames provided do not show his face.
At 3.2 s a bird flies by.
At 01:15 the music stops.
By 14 seconds the pan is empty.
The timestamps are evenly spread.
The time stamp of the jump is early.
Around 8 seconds, the man sits down.
Frame 12 shows the ball in the goal.
Between frame 3 and frame 4 the light changes.
In the second frame a child enters.
The final frame shows an empty room.
From the first frame to the last frame nothing moves.
In the previous frame, the door was shut.
The bbox of the dog is small.
The bounding boxes overlap.
The coordinates of the cup tell that it is on the left.
The car stands at [12, 40, 88, 120].
The ball is object_3 in the list.
Step one of the instructions asks me to picture the scene.
As instructed, I first picture the video.
[Uncertain] A man may be holding a phone.
The spatial_relations say that the cup is left of the plate.
According to the video description, there are three people.
The frame descriptions mention rain twice.
The text provided says that she wins.
The notes describe a man in a red coat.
""".strip().splitlines()
INNOCENT = """
There is a caption on the sign above the shop.
The caption under the painting is in French.
The caption reads Welcome to everybody.
He gave no sign of fear.
She is beyond words when she sees it.
The frame of the door is green.
The first frame of the bicycle is bent.
A window frame hangs loose.
The bed frame is made of wood.
He picks up three boxes from the floor.
The bound book lies on a box.
Ten seconds later he has gone.
She waits for two seconds before she jumps.
At 30 seconds long it is a short dance.
The first man is taller than the second.
The next person takes the cup.
At first the street is empty.
Towards the end two cars pass.
He scores three points.
The team leads by 4 to 2.
She writes a note and folds it.
The notes of the song rise.
A note on the door is torn.
He provided a chair for her.
The given name is on the badge.
An uncertain smile crosses her face.
The man steps on the first step.
Step by step he climbs.
An instruction manual lies open.
The teacher instructs the class.
The object is thrown away.
An object rolls under the table.
He coordinates the dancers with his hands.
The key turns in the lock.
The elements are rough, with rain and wind.
Her time is better than his.
The clock stands on the shelf.
He stamps the letter twice.
Data cables hang from the wall.
A schematic drawing lies there.
A caption at the bottom of the poster is too small to read.
The caption printed below the photo names the artist.
Her description of the thief makes the officer smile.
The frame of the picture is golden.
She cleans the frame of her glasses.
The last frame of the bike is painted blue.
He frames the photo and hangs it up.
The snooker player wins his frame.
Two seconds later the ball is in the net.
After ten seconds of silence she speaks.
He needs three seconds to climb over the wall.
The second runner falls behind.
For a second he hesitates.
The final score is 3 to 1.
The third man carries a ladder.
The next scene takes place in a garden.
The last person turns off the light.
The boy takes notes with a pencil.
He leaves a note under the door.
The singer holds the note for long.
The box is bound with a red ribbon.
The bounding dog leaps over the fence.
He opens the box and takes out a ball.
The policeman coordinates the traffic.
The information desk is on the left.
Information about trains is on the board.
The text on the shirt is in German.
The text on the wall is given in two languages.
The map shows a park with a lake.
The key is under the mat.
The elements of the stove glow.
He follows the instructions on the packet.
The instructor shows how to hold the racket.
The step of the ladder breaks.
He takes one step to the left and waits.
The object that he throws is round.
An uncertain look crosses his face.
It is uncertain who wins until the very end.
The clock in the hall strikes noon.
His watch is on his left arm.
The team is listed on the board.
The given present is wrapped in paper.
The stamp on the letter is green.
The letters on the door spell a name.
She provides food for the birds.
The schoolboy reads the scheme on the board.
""".strip().splitlines()
# (question, sentence): each speaks of what the question speaks of.
ALLOWED = (
    ("What does the caption on the sign say?", "The caption says that the shop is open."),
    ("What happens at 12:30 on the clock?", "At 12:30 he comes in."),
    ("Which scene description fits best?", "The scene description with the dog fits best."),
    ("What is shown in the first frame of the comic strip?", "The first frame shows a cat."),
    ("At which timestamp does he jump?", "He jumps right at that timestamp."),
    ("What do the coordinates on the map point to?", "The coordinates point to a lake."),
    ("What is in the JSON on the screen?", "The JSON on the screen holds two names."),
    ("Which metadata does the camera show?", "The metadata tells the shutter time."),
)
