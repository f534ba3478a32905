"""What others do between two blocks of the documentation: python block_helpers.py WHAT ARGUMENT."""

import json
import pathlib
import sys
import urllib.request


def spread(path: str) -> None:
    """Gives every other question the rate 1/2, since a random model answers none of them right."""
    file = pathlib.Path(path)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rates = [row for row in rows if "pass_rate" in row]
    for row in rates[::2]:
        row["pass_rate"] = 0.5
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(url: str) -> None:
    """Writes the results of the request files in `batches`, as the provider at `url` gives them."""
    for file in pathlib.Path("batches").glob("*.jsonl"):
        rows = []
        for asked in map(json.loads, file.read_text().splitlines()):
            body = json.dumps(asked["body"]).encode()
            with urllib.request.urlopen(f"{url}/chat/completions", body) as reply:
                response = {"status_code": 200, "request_id": "r", "body": json.load(reply)}
            rows.append({"custom_id": asked["custom_id"], "response": response, "error": None})
        file.with_suffix(".results").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    {"spread": spread, "answer": answer}[sys.argv[1]](sys.argv[2])
