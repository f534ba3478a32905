"""What devices send each other: read off HLO, and priced by hand on lines, boxes and rings."""

import dataclasses
import types

import numpy as np
import pytest
from planned import narrow_job

from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.links import (
    LINKS,
    Collective,
    Wires,
    find_wires,
    sent_bytes,
    wired_seconds,
)
from videorft_jax.planning.report import as_text, make_rows, summarise

HLO = """HloModule jit_f

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%ends (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[] constant(7)
  %turn = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%turn, %limit), direction=LT
}

%layer (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %copy-start.1 = (bf16[9,4]{1,0:T(8)S(1)}, bf16[9,4]{1,0:T(8)}, u32[]{:S(2)}) copy-start(%w)
  %copy-start.9 = (f32[99]{0:T(8)}, f32[99]{0:T(8)S(1)}, u32[]{:S(2)}) copy-start(%result)
  %one = bf16[8,4]{1,0} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  %slice-start.2 = ((f32[9]{0:T(8)}), f32[4]{0:T(8)S(1)}, s32[]{:S(2)}) slice-start(%more)
  %slice-start.3 = ((f32[9]{0:T(8)}), f32[6]{0:T(8)S(1)}, s32[]{:S(2)}) async-start(%more), calls=%s
  %six = bf16[8,4]{1,0} all-to-all(%x), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %copy-done.1 = bf16[9,4]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %slice-done.2 = f32[4]{0:T(8)S(1)} slice-done(%slice-start.2)
  %slice-done.3 = f32[6]{0:T(8)S(1)} async-done(%slice-start.3)
  %copy-done.9 = f32[99]{0:T(8)} copy-done(%copy-start.9)
  %seven = bf16[8,4]{1,0} all-to-all(%z), channel_id=1, replica_groups={{0,1},{2,3},{4,5},{6,7}}
  %eight = f32[16]{0} all-gather(%y), channel_id=6, replica_groups={{0,2},{4,6},{1,3},{5,7}}
}

%fused.1 (p: f32[4]) -> f32[16] {
  %two = f32[16]{0} all-gather(%y), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}
}

%fused.2 (p: f32[4]) -> f32[16] {
  %again = f32[16]{0:T(128)S(1)} all-gather(%p), channel_id=2, replica_groups=[2,4]<=[4,2]T(1,0)
}

%drawn (p: (s32[])) -> pred[] {
  ROOT %both = pred[] and(%less, %more)
}

%token (p: (s32[])) -> (s32[]) {
  %loop = (s32[], f32[8,4]) while(%init), condition=%ends, body=%layer
  %three = f32[4]{0} reduce-scatter(%z), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %tokens = (s32[]) while(%start), condition=%drawn, body=%token
  %w = (f32[6], f32[6]) collective-permute-start(%v), channel_id=4,source_target_pairs={{0,2},{2,0}}
  %five = s8[5]{0} all-gather(%v), channel_id=5, replica_groups=mesh['a'=4,'b'=2] {'a','b'}
}
"""


def grid(places, shape, cores=None):
    """A mesh (data, fsdp, tensor) of devices that stand at `places`."""
    cores = cores or [0] * len(places)
    devices = np.empty(len(places), object)
    for number, (place, core) in enumerate(zip(places, cores, strict=True)):
        devices[number] = types.SimpleNamespace(coords=place, core_on_chip=core)
    sizes = dict(zip(("data", "fsdp", "tensor"), shape, strict=True))
    return types.SimpleNamespace(
        devices=devices.reshape(shape), shape=sizes, axis_names=tuple(sizes)
    )


def test_collectives_of_a_text():
    """A layer's count is that of its loop, times the turns of a loop over tokens around it; what
    stands behind that loop counts one. A gather that the compiler spreads over fusions, whose
    results lie in other memories, is one; two that share a channel elsewhere are two. The 72 bytes
    of one copy are fetched during a sum and an exchange of 64 bytes, of which a sum takes twice as
    long, and 40 of two slices during that exchange alone. What is copied back does not count."""
    mesh = grid([(n, 0, 0) for n in range(8)], (1, 4, 2))
    for turns in (1, 5):
        assert read_collectives(HLO, mesh, turns) == [
            ("all-gather", ("fsdp",), 64, 1, 0, 0.0),
            ("all-gather", ("fsdp",), 64, 7 * turns, 2, 0.0),
            ("all-gather", ("fsdp", "tensor"), 5, 1, 0, 0.0),
            ("all-reduce", ("tensor",), 64, 7 * turns, 0, 48.0),
            ("all-to-all", ("tensor",), 64, 7 * turns, 0, 0.0),
            ("all-to-all", ("tensor",), 64, 7 * turns, 0, 64.0),
            ("collective-permute", ("fsdp",), 24, 1, 0, 0.0),
            ("reduce-scatter", ("tensor",), 32, turns, 0, 0.0),
        ]


SQUARE = [(x, y, 0) for x in range(4) for y in range(4)]
BLOCKS = [(x, y, 0) for a in (0, 2) for b in (0, 2) for x in (a, a + 1) for y in (b, b + 1)]
BENT = [*SQUARE[:3], (1, 2, 0)]
CUBE = [(x, y, z) for x in range(4) for y in range(4) for z in range(4)]
PAIRS = [(x, y, 0) for x in range(2) for y in range(2) for _ in range(2)]
CORES = [0, 1] * 4
SIZE = 1e8  # bytes


@pytest.mark.parametrize(
    ("kind", "mesh", "axes", "sent", "seconds"),
    [
        # A line of four: three quarters come through one link, over three hops.
        ("v6e", grid(SQUARE, (1, 4, 4)), ("tensor",), "all-gather", 75e6 / 100e9 + 3e-6),
        ("v5e", grid(SQUARE, (1, 4, 4)), ("tensor",), "all-reduce", 2 * (75e6 / 50e9 + 3e-6)),
        # A square of four: two links, two hops.
        ("v6e", grid(BLOCKS, (1, 4, 4)), ("tensor",), "all-gather", 75e6 / 200e9 + 2e-6),
        # The fsdp of those squares: devices two apart, whose links are shared by two groups.
        ("v6e", grid(BLOCKS, (1, 4, 4)), ("fsdp",), "all-gather", 75e6 / 100e9 + 4e-6),
        # Lines that bend are no box.
        ("v6e", grid(BENT, (1, 1, 4)), ("tensor",), "all-gather", 75e6 / 100e9 + 3e-6),
        # A full cube is closed to rings in all three dims.
        ("v5p", grid(CUBE, (1, 64, 1)), ("fsdp",), "all-gather", 63 / 64 * SIZE / 600e9 + 6e-6),
        # Two devices of a chip need no link, and four chips' pairs share theirs.
        ("tpu7x", grid(PAIRS, (1, 4, 2), CORES), ("tensor",), "all-gather", 0.0),
        ("tpu7x", grid(PAIRS, (1, 4, 2), CORES), ("fsdp",), "all-gather", 75e6 / 100e9 + 2e-6),
        ("tpu7x", grid(PAIRS, (1, 8, 1), CORES), ("fsdp",), "all-gather", 75e6 / 200e9 + 2e-6),
    ],
)  # fmt: skip
def test_seconds_by_hand(kind, mesh, axes, sent, seconds):
    found = Wires(LINKS[kind], mesh).seconds(Collective(sent, axes, SIZE, 3))
    assert found == pytest.approx(3 * seconds, rel=1e-9)


def test_what_waits_is_added_and_what_need_not_runs_beside():
    wires = Wires(LINKS["v6e"], grid(SQUARE, (1, 4, 4)))
    gather, add = (
        Collective("all-gather", ("fsdp",), SIZE, 1),
        Collective("all-reduce", ("tensor",), SIZE, 1),
    )
    beside, waited = wires.seconds(gather), wires.seconds(add)
    both = [gather, add]
    assert wired_seconds(wires, 1.0, both, "update") == pytest.approx(1.0 + waited)
    assert wired_seconds(wires, 0.0, both, "update") == pytest.approx(beside + waited)
    assert wired_seconds(wires, 1.0, both, "decode") == pytest.approx(1.0 + beside + waited)


def test_what_is_fetched_meanwhile_hides_a_sum():
    """By hand: a sum along a line of four takes 1.5 ms and 6 us; 1 GB/s brings 1.5 MB in 1.5 ms."""
    wires = Wires(LINKS["v6e"], grid(SQUARE, (1, 4, 4)), memory=1e9)
    add = Collective("all-reduce", ("tensor",), SIZE, 2, fetched=1.5e6)
    assert wires.seconds(add) == pytest.approx(2 * 1.506e-3)
    assert wires.exposed_seconds(add) == pytest.approx(2 * 6e-6)
    assert wires.exposed_seconds(add._replace(fetched=2e6)) == 0.0
    assert wired_seconds(wires, 1.0, [add], "decode") == pytest.approx(1.0 + 2 * 6e-6)
    assert wired_seconds(wires, 1.0, [add], "update") == pytest.approx(1.0 + 2 * 1.506e-3)


def test_neighbours_that_exchange_among_themselves():
    """Two of a line of four: half of the array through one link, over one hop."""
    wires = Wires(LINKS["v6e"], grid(SQUARE, (1, 4, 4)))
    pair = Collective("all-to-all", ("tensor",), SIZE, 1, among=2)
    assert wires.seconds(pair) == pytest.approx(SIZE / 2 / 100e9 + 1e-6)
    assert sent_bytes(grid(SQUARE, (1, 4, 4)), [pair]) == SIZE / 2


def test_a_machine_without_known_links_says_so():
    job = narrow_job("H100:4", "grpo")
    assert find_wires(job.topology, job.mesh) is None
    rows = make_rows(job)
    step = summarise(job, rows)
    assert step["wired_floor_s"] is None
    text = as_text(rows, step)
    assert text.count("no wires counted") == len(rows) + 1
    head, *table = text.splitlines()[: 1 + len(rows)]
    column = slice(head.index("  with wires"), head.index("  compile s"))
    assert {line[column].strip() for line in table} == {"-"}
    assert all(line.endswith("  no wires counted") for line in table)
    assert {len(line.removesuffix("  no wires counted")) for line in table} == {len(head)}


def test_tokens_and_chip_seconds_are_of_the_time_with_wires():
    job = narrow_job("H100:4", "grpo")
    rows = make_rows(job)
    alone = summarise(job, rows)
    wired = summarise(job, [dataclasses.replace(row, wired_s=2 * row.floor_s) for row in rows])
    assert wired["floor_s"] == alone["floor_s"]
    assert wired["chip_s_per_rollout"] == pytest.approx(2 * alone["chip_s_per_rollout"])
    assert wired["tokens_per_s"] == pytest.approx(alone["tokens_per_s"] / 2)


def test_every_draw_of_dynamic_sampling_counts():
    costs = []
    for draws in (1, 3):
        job = narrow_job("H100:8", "grpo", **{"grpo.max_draws": draws})
        (row,) = (row for row in make_rows(job) if row.name == "decode")
        costs.append(np.array([row.flops, row.bytes, row.floor_s, row.sent_bytes]))
    np.testing.assert_allclose(costs[1], 3 * costs[0], rtol=1e-12)
