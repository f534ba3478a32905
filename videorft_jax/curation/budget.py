"""The budget: what a request may cost at most is reserved before it leaves, and settled after.

What is not known stays at the worst case, so that the spending shown is an upper bound and a limit
holds even if every lost reply was billed.
"""

import dataclasses
import math
from collections.abc import Mapping

from videorft_jax.curation.endpoints import NANO, Endpoint
from videorft_jax.curation.requests import Dead, Reply, Request, estimate_tokens
from videorft_jax.curation.store import Store, Write, save_dead, save_reply


class OutOfBudget(RuntimeError):
    """No reservation fits any more: str() says which limit and how far it is used."""

    exit_code = 75


@dataclasses.dataclass(frozen=True)
class Limits:
    """Dollars and tokens that a store may spend over all its runs; None: no limit."""

    dollars: float | None = None
    tokens: int | None = None

    def __post_init__(self):
        for value in (self.dollars, self.tokens):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"budget: limit {value}; give a number from 0")

    def split(self, parts: int) -> "Limits":
        """The share of one of `parts` shards."""
        dollars = None if self.dollars is None else self.dollars / parts
        return Limits(dollars, None if self.tokens is None else self.tokens // parts)


class Ledger:
    """Reserves and settles attempts in a store.

    Raises ValueError when money is limited and an endpoint has no price.
    """

    def __init__(self, store: Store, endpoints: Mapping[str, Endpoint], limits: Limits):
        for endpoint in endpoints.values():
            if limits.dollars is not None and endpoint.price is None:
                raise ValueError(
                    f"endpoint {endpoint.name}: has no price, so money cannot be limited; give "
                    "price = {input = ..., cached = ..., output = ...}, or limit budget.tokens"
                )
        self.store, self.endpoints, self.limits = store, endpoints, limits
        self._next = store.rows("SELECT COALESCE(MAX(id), 0) FROM attempt")[0][0]
        total = "SELECT COALESCE(SUM(COALESCE(settled, reserved)), 0), COALESCE(SUM(tokens), 0)"
        # Nano-dollars and tokens that are spent or in flight: upper bounds.
        self.spent, self.tokens = store.rows(f"{total} FROM attempt")[0]

    def worst_case(self, request: Request, is_batch: bool = False) -> tuple[int, int]:
        """(nano-dollars, tokens) that the request costs at most, online or in a batch file."""
        endpoint = self.endpoints[request.endpoint]
        tokens = estimate_tokens(request, endpoint.image_tokens)
        price, money = endpoint.price, 0
        if price:
            money = price.cost(tokens, request.max_tokens, is_batch=is_batch)
        return money, tokens + request.max_tokens

    def reserve(self, request: Request, is_batch: bool = False) -> tuple[int, Write]:
        """Books the worst case. Returns the attempt's id and the row to commit before the request
        leaves. Raises OutOfBudget."""
        money, tokens = self.worst_case(request, is_batch)
        dollars, most = self.limits.dollars, self.limits.tokens
        if dollars is not None and self.spent + money > round(dollars * NANO):
            used = self.spent / NANO
            raise OutOfBudget(f"budget: stopped at ${used:.6f} of ${dollars:.6f}; raise it")
        if most is not None and self.tokens + tokens > most:
            raise OutOfBudget(f"budget: stopped at {self.tokens:,} of {most:,} tokens; raise it")
        number, booking = self.book(request, is_batch)
        return number, booking[0]

    def book(self, request: Request, is_batch: bool = False) -> tuple[int, list[Write]]:
        """Books the worst case whatever the limits say, for a result that was paid elsewhere."""
        money, tokens = self.worst_case(request, is_batch)
        self.spent += money
        self.tokens += tokens
        self._next += 1
        state = "batch" if is_batch else "open"
        row = (self._next, request.key, request.endpoint, request.stage, state, money, tokens)
        insert = (
            "INSERT INTO attempt (id, key, endpoint, stage, state, reserved, tokens) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)"
        )
        return self._next, [(insert, row)]

    def settle(
        self, number: int, request: Request, *, reply: Reply | None = None, billed: str = "no",
        code: str = "ok", status: int | None = None, dead: Dead | None = None,
        is_batch: bool = False,
    ) -> list[Write]:  # fmt: skip
        """The rows that end an attempt: paid with a reply, free, or unknown at the worst case."""
        reserved, held = self.worst_case(request, is_batch)
        money, tokens, state = reserved, held, "unknown"
        if reply is not None:
            price, state = self.endpoints[request.endpoint].price, "paid"
            usage = (reply.input_tokens, reply.output_tokens, reply.cached_tokens)
            money = price.cost(*usage, is_batch=is_batch) if price else 0
            tokens = reply.input_tokens + reply.output_tokens
        elif billed == "no":
            money, tokens, state = 0, 0, "free"
        self.spent += money - reserved
        self.tokens += tokens - held
        update = "UPDATE attempt SET state=?, settled=?, tokens=?, code=?, status=? WHERE id=?"
        writes = [(update, (state, money, tokens, code, status, number))]
        if reply is not None:
            writes.append(save_reply(request, reply))
        if dead is not None:
            writes.append(save_dead(request, dead))
        return writes
