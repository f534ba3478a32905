"""Each attack on what others may write, and its defence taken away, which a test must notice."""

from typing import NamedTuple

from mutations import Mutation


class Attack(NamedTuple):
    """What an attacker wants, and the mutation that takes away what stands in the way."""

    wish: str
    mutation: Mutation


ANSWERS = "tests/rewards/test_answers.py"
HOSTILE = "tests/data/test_hostile_media.py"
ATTACKED = "tests/data/test_attacks.py"
REFUSALS = "tests/serving/test_serve_refusals.py"
CURATION = "tests/curation/test_curation_runs.py"
PARTS = "tests/curation/test_curation_parts.py"
TENSORS = "tests/models/test_tensor_files.py"

ATTACKS = [
    Attack(
        "a completion that is run as a formula",
        Mutation(
            "rewards/answers.py",
            "    value, pos = _scan_value(text, pos)\n",
            "    value, pos = float(eval(text[pos:] or '0')), len(text)\n",
            ANSWERS,
        ),
    ),
    Attack(
        "an answer that takes hours to find",
        Mutation(
            "rewards/answers.py",
            "        begin = text.rfind(opening, start, end)\n",
            "        begin = text.rfind(opening, 0, end)\n",
            ANSWERS,
        ),
    ),
    Attack(
        "a reward for the answer inf",
        Mutation("rewards/answers.py", " or not math.isfinite(value):", ":", ANSWERS),
    ),
    Attack(
        "a number of megabytes",
        Mutation("rewards/answers.py", "len(text) > MAX_NUMBER", "len(text) < 0", ANSWERS),
    ),
    Attack(
        "a text file that opens others as a list of clips",
        Mutation("data/media/decode.py", '"format_whitelist": FORMATS,', "", ATTACKED),
    ),
    Attack(
        "a path or link out of the data root",
        Mutation(
            "data/media/files.py",
            "os.path.commonpath([r, real]) == r for r in roots",
            "r for r in roots",
            HOSTILE,
        ),
    ),
    Attack(
        "a file beyond the limit of bytes",
        Mutation(
            "data/media/files.py",
            "status.st_size > limits.max_bytes",
            "status.st_size < 0",
            HOSTILE,
        ),
    ),
    Attack(
        "a frame of hundreds of megabytes",
        Mutation(
            "data/media/image.py",
            "image.width * image.height > limits.max_source_pixels",
            "image.width < 0",
            ATTACKED,
        ),
    ),
    Attack(
        "a clip that decodes for ever",
        Mutation(
            "data/media/decode.py", "time.monotonic() > self.deadline", "self.deadline < 0", HOSTILE
        ),
    ),
    Attack(
        "a decoder that takes all memory",
        Mutation(
            "data/media/isolate.py",
            "resource.setrlimit(resource.RLIMIT_AS, (space, space))",
            "pass",
            HOSTILE,
        ),
    ),
    Attack(
        "turns forged by control tokens in a record",
        Mutation(
            "data/records/render.py",
            "encode_special_tokens = True",
            "encode_special_tokens = False",
            "tests/data/test_prompts.py",
        ),
    ),
    Attack(
        "a header that describes other bytes than the file has",
        Mutation("models/tensor_files.py", "if begin != position:", "if begin < 0:", TENSORS),
    ),
    Attack(
        "a header of gigabytes",
        Mutation("models/tensor_files.py", "2 <= length <= _MAX_HEADER", "2 <= length", TENSORS),
    ),
    Attack(
        "a request without the key",
        Mutation("serving/app.py", 'kind.lower() != "bearer" or not known', "False", REFUSALS),
    ),
    Attack(
        "a web page that asks in the reader's name",
        Mutation("serving/app.py", 'if kind != "application/json":', "if False:", REFUSALS),
    ),
    Attack(
        "a body beyond the limit, sent in parts",
        Mutation("serving/app.py", "if len(body) > limit:", "if False:", REFUSALS),
    ),
    Attack(
        "a request that has the server fetch a URL",
        Mutation("serving/media.py", "    if not is_file:\n", "    if False:\n", REFUSALS),
    ),
    Attack(
        "a request with a thousand clips",
        Mutation("serving/media.py", "if count > options.max_media:", "if False:", REFUSALS),
    ),
    Attack(
        "an expert that sends the prompt elsewhere",
        Mutation("curation/client.py", "follow_redirects=False", "follow_redirects=True", CURATION),
    ),
    Attack(
        "a caption that ends its own fence",
        Mutation(
            "curation/prompts.py",
            "text}\\n[[end of {name} {mark}]]",
            "text}\\n[[end of {name}]]",
            PARTS,
        ),
    ),
    Attack(
        "a key in a log or an error",
        Mutation(
            "curation/endpoints.py",
            'return "Secret(...)"',
            "return self._text",
            "tests/curation/test_curation_keys.py",
        ),
    ),
    Attack(
        "a reply that unpacks without end",
        Mutation(
            "curation/client.py",
            "decoder.decompress(chunk, max(most, 1))",
            "decoder.decompress(chunk)",
            f"{PARTS} {CURATION}",
        ),
    ),
    Attack(
        "a completion that is a script in the report",
        Mutation(
            "reporting/page.py",
            "autoescape=True",
            "autoescape=False",
            "tests/reporting/test_report_browser.py tests/reporting/test_report.py",
        ),
    ),
    Attack(
        "a record that is a script in the page of curation",
        Mutation(
            "curation/page.py",
            "autoescape=True",
            "autoescape=False",
            "tests/curation/test_curation_page.py",
        ),
    ),
]
