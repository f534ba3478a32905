"""What a reply or a cancelled run must not leave in the store."""

import asyncio
import json

import pytest

from videorft_jax.curation.budget import Ledger, Limits
from videorft_jax.curation.client import read_reply
from videorft_jax.curation.endpoints import Endpoint, Price
from videorft_jax.curation.requests import Request
from videorft_jax.curation.running import Runner
from videorft_jax.curation.store import Store

END = Endpoint("think", "m", base_urls=("http://127.0.0.1:9/v1",), price=Price(1, 1, 1))
ASK = Request("think", "u", "think", "m", "", ("q",), 16, 0.5, 1.0, 0, "t")


def make_body(content="a", usage=None, **message):
    choice = {"message": {"content": content, **message}}
    return json.dumps({"choices": [choice], "model": "m", "usage": usage}).encode()


@pytest.mark.parametrize("count", [10**400, 10**19, 1e300])
def test_a_count_that_no_request_has_is_estimated(count, tmp_path):
    """Else it ends the run, in Python or in SQLite, and its reply is lost."""
    reply = read_reply(make_body(usage={"prompt_tokens": count, "completion_tokens": 2}), ASK, END)
    assert reply.estimated
    with Store(tmp_path / "store.db") as store:
        ledger = Ledger(store, {"think": END}, Limits(dollars=1.0))
        number, opening = ledger.reserve(ASK)
        store.write([opening, *ledger.settle(number, ASK, reply=reply)])
        assert store.find(ASK.key) == reply


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("a\ud800", "a\ufffd"),
        ("\udc00b\ud83d", "\ufffdb\ufffd"),
        ("\ud83d\ud83d!", "\ufffd\ufffd!"),
        ("\U0001f600 \u00e9\\ud800", "\U0001f600 \u00e9\\ud800"),
    ],
)
def test_half_a_surrogate_pair_of_a_reply_can_be_written(said, kept):
    """A reply stays in the store for good; with such a letter no file of the stages was whole."""
    reply = read_reply(make_body(said, reasoning=said), ASK, END)
    assert (reply.content, reply.reasoning) == (kept, kept)


def test_a_run_cancelled_while_it_books_has_spent_nothing(tmp_path, monkeypatch):
    class Client:
        limits = (0, 0)

        async def send(self, request):
            raise AssertionError("it was cancelled before")

    def unit():
        yield ASK

    async def run(store, ledger):
        runner = Runner(store, ledger, {"think": END}, {"think": Client()})
        task = asyncio.create_task(runner.run([unit], workers=1))
        loop, write = asyncio.get_running_loop(), store.write

        def cancel_and_write(writes):
            """The first write, that of the booking, ends after the run was told to end."""
            monkeypatch.setattr(store, "write", write)
            loop.call_soon_threadsafe(task.cancel)
            write(writes)

        monkeypatch.setattr(store, "write", cancel_and_write)
        with pytest.raises(asyncio.CancelledError):
            await task

    with Store(tmp_path / "store.db") as store:
        ledger = Ledger(store, {"think": END}, Limits(dollars=1.0))
        asyncio.run(run(store, ledger))
        assert (ledger.spent, ledger.tokens) == (0, 0)
    with Store(tmp_path / "store.db") as store:
        rows = store.rows("SELECT state, settled, tokens, code FROM attempt")
        assert rows == [("free", 0, 0, "cancelled")]
