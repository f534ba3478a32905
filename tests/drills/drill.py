"""Breaks real runs of the tiny model at seeded random moments and prints what they survive.

    bash launch/drill.sh                     every drill at ten moments, which takes hours
    bash launch/drill.sh --moments=1         once each
    bash launch/drill.sh --only=1,5 --jobs=sft --out=runs/drills

A moment that is finished is not run again: the same command goes on. The exit code is 1 when a
moment was not survived, or came out other than the undisturbed run.
"""

import argparse
import pathlib
import random
import shutil
import sys
import time
import traceback

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "support"), str(HERE.parents[1])]

from drill_chats import make_curation  # noqa: E402, beside this file
from drill_jobs import JOBS, compare, count_wrong  # noqa: E402
from drill_list import DRILLS  # noqa: E402
from drill_place import Place, Run  # noqa: E402
from drill_table import Moments  # noqa: E402


class Drills:
    """Runs drills in one place; what the undisturbed run of a job gives is computed once."""

    def __init__(self, folder: pathlib.Path, seed: int = 0):
        self.place, self.folder, self.seed = Place(folder), folder, seed
        self._undisturbed = {}

    def undisturbed(self, job: str):
        if job == "serve":
            return {}, {}  # The drill asks the undisturbed server itself.
        if job == "curate" and not hasattr(self.place, "chats"):
            make_curation(self.place)
        if job not in self._undisturbed:
            folder = self.folder / f"whole_{job}_{self.place.code}"
            run = Run(self.place, folder, JOBS[job], random.Random(0))
            if not (folder / "done").exists():
                shutil.rmtree(run.workdir, ignore_errors=True)
                run.start()
                assert run.end() == 0, run.last.said
                (folder / "done").touch()
            wanted = JOBS[job].result(run.workdir), JOBS[job].samples(run.workdir)
            self._undisturbed[job] = wanted
        return self._undisturbed[job]

    def take(self, drill, job: str, moment: int) -> dict:
        """One moment: the row of the table."""
        row = {"drill": drill.number, "job": job, "moment": moment, "survived": False}
        began = time.monotonic()
        try:
            row |= self._break(drill, job, moment) | {"survived": True}
        except Exception as error:  # It is what the drill has found, whatever it is.
            row["fault"] = f"{type(error).__name__}: {error}"[-1500:]
            traceback.print_exc()
        return row | {"seconds": round(time.monotonic() - began, 1)}

    def _break(self, drill, job, moment):
        folder = self.folder / f"{drill.number}_{job}_{moment}"
        shutil.rmtree(folder, ignore_errors=True)
        rng = random.Random(f"{self.seed} {drill.number} {job} {moment}")
        run = Run(self.place, folder, JOBS[job], rng)
        run.moment = moment
        expected, samples = self.undisturbed(job)
        with run.cleanup:
            return self._go_on(drill.break_(run), run, expected, samples)

    def _go_on(self, what, run, expected, samples):
        row = {"what": what, "said": run.last.said.strip().splitlines()[-1:]}
        row |= run.go_on()
        assert "Traceback" not in run.said, run.said
        if run.expected:
            lines = run.last.said.splitlines()
            assert any(all(w in line for w in run.expected) for line in lines), run.said
        if run.is_compared and not run.is_over:
            row["samples_wrong"] = count_wrong(run.job.samples(run.workdir), samples)
            difference = compare(run.job.result(run.workdir), expected)
            assert not difference, f"differs from the undisturbed run in {difference}; {what}"
            assert not row["samples_wrong"], f"{row['samples_wrong']} samples lost or repeated"
        shutil.rmtree(run.folder, ignore_errors=True)
        return row

    def end(self):
        self.place.end()


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--moments", type=int, default=10, help="of each drill and job")
    parser.add_argument("--only", default="", help="numbers of drills, such as 1,5")
    parser.add_argument("--jobs", default="", help="names of jobs, such as sft,grpo")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/drills"))
    parser.add_argument("--seed", type=int, default=0, help="draws other moments")
    given = parser.parse_args(argv)
    numbers = [drill.number for drill in DRILLS]
    only = given.only.split(",") if given.only else numbers
    jobs = given.jobs.split(",") if given.jobs else list(JOBS)
    if unknown := {*only} - {*numbers} or {*jobs} - {*JOBS}:
        parser.error(f"no {', '.join(sorted(unknown))}; drills {numbers}, jobs {list(JOBS)}")
    given.out.mkdir(parents=True, exist_ok=True)
    moments = Moments(given.out / "moments.jsonl")
    drills = Drills(given.out.resolve() / "place", given.seed)
    try:
        for moment in range(given.moments):  # Every drill comes once before any comes twice.
            for drill in DRILLS:
                for job in drill.jobs:
                    chosen = drill.number in only and job in jobs
                    if chosen and not moments.has(drill.number, job, moment):
                        row = drills.take(drill, job, moment)
                        moments.add(row)
                        word = "survived" if row["survived"] else "LOST"
                        print(f"{drill.number} {job} {moment}: {word}, {row.get('what', '')}"
                              f" ({row['seconds']} s)", flush=True)  # fmt: skip
    finally:
        drills.end()
    print(moments.format({drill.number: drill.name for drill in DRILLS}))
    return int(not all(row["survived"] for row in moments.rows))


if __name__ == "__main__":
    sys.exit(main())
