"""The drills: their number in the table, what they do, and the jobs that they are for."""

import dataclasses
from collections.abc import Callable

import drill_chats as chats
import drill_inputs as inputs
import drill_kills as kills
import drill_peers as peers
import drill_services as services
import drill_shards as shards
import drill_storage as storage

TRAINING = ("sft", "grpo")
RECORDS = ("sft", "grpo", "evaluate")


@dataclasses.dataclass(frozen=True)
class Drill:
    """break_: takes a `Run` that has not begun and breaks it; returns what it did."""

    number: str
    name: str
    jobs: tuple[str, ...]
    break_: Callable


DRILLS = [
    Drill("1", "kill -9 in a save", TRAINING, kills.kill_in_a_save),
    Drill("2", "kill -9 between rename and manifest", TRAINING, kills.kill_before_the_seal),
    Drill("3", "a byte of the newest step flipped", TRAINING, kills.flip_a_byte),
    Drill("4", "a step truncated, cut, empty, stray", TRAINING, kills.damage_the_folder),
    Drill("5", "SIGTERM in a step, in a save, twice", TRAINING, kills.stop_by_sigterm),
    Drill("6", "the disk is full or read-only", TRAINING, storage.fill_the_disk),
    Drill("7", "resumed with other workers", TRAINING, kills.resume_with_other_workers),
    Drill("8", "one of two processes killed", TRAINING, peers.kill_a_peer),
    Drill("9", "bad clips of all kinds", RECORDS, inputs.mix_bad_clips),
    Drill("10", "a loader's worker killed or hung", TRAINING, kills.kill_a_worker),
    Drill("11", "all clips gone", RECORDS, inputs.lose_all_clips),
    Drill("12", "a reward raises, is NaN or slow", ("grpo",), inputs.break_the_reward),
    Drill("13", "all rewards equal", ("grpo",), inputs.give_equal_rewards),
    Drill("14", "kill -9 of curation, a server with faults", ("curate",), chats.kill_curation),
    Drill("15", "kill -9 of an evaluation", ("evaluate",), services.kill_it),
    Drill("16", "a shard damaged, its build killed", TRAINING, shards.damage_a_shard),
    Drill("17", "kill -9 under launch/supervise.sh", TRAINING, services.kill_under_the_supervisor),
    Drill("18", "options that cannot work", RECORDS, inputs.give_bad_options),
    Drill("19", "two runs in one work directory", TRAINING, services.start_a_second_run),
    Drill("20", "a worker stands still for a while", TRAINING, services.stop_a_worker),
    Drill("21", "the clock jumps", TRAINING, storage.jump_the_clock),
    Drill("22", "a clip comes late", TRAINING, storage.answer_late),
    Drill("23", "one of two processes hangs", TRAINING, peers.hang_a_peer),
    Drill("24", "serve killed or stopped", ("serve",), chats.stop_serving),
]
