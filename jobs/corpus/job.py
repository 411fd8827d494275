"""The corpus stage: sources to shards, on Ray.

`run_corpus` takes each corpus through the two phases of `build.py` by Ray Data, whose rows are
pieces of work and what came of them: some kilobytes each. The images themselves go from the source
through scratch into the shards without entering the object store, since one large whole piece of
work a task is what Ray does cheaply. Nothing here decides what to run, commits or retries.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext

from jobs.contract import Failure, Hooks, Outcome, Work
from jobs.corpus import build
from jobs.corpus.build import Scan, Survey
from jobs.corpus.layout import Cut, lay_out
from jobs.corpus.runs import Run
from jobs.corpus.shards import File, write_shard
from jobs.corpus.spec import Corpus
from jobs.storage.folder import Folder

Json: TypeAlias = "dict[str, Any]"

SCANNING = 0.5  # share of a build's progress


class _StoppedError(Exception):
    """The user asked to stop; what is done lies in scratch."""


def run_corpus(works: Sequence[Work], hooks: Hooks) -> None:
    """Build each work's corpus (spec: `Corpus`, no inputs) into its output folder.

    Output: `<part>-<number>.parquet` by `shards.SCHEMA`, `quarantine.parquet` and `_index.json`;
    counts: see `build.finish`. A work that fails is reported with its error and the others go on.
    """
    _settle()
    for work in works:
        if hooks.stopping():
            return
        try:
            hooks.done(work.address, _build(work, hooks))
        except _StoppedError:
            return
        except Exception as error:
            hooks.done(work.address, error)


def _build(work: Work, hooks: Hooks) -> Outcome:
    corpus = cast(Corpus, work.spec).with_absolute_paths()
    hooks.say(work.address, 0.0, "looking at the source")
    found: Survey = ray.get(_survey.remote(corpus))
    build.resume(work.scratch, found)
    scanning = _Phase(work, hooks, 0.0, SCANNING, "units of the source read")
    scan = partial(_scan, corpus, found, work.scratch)
    pieces = [{"number": piece.number} for piece in found.pieces]
    scans = [Scan.of(said) for said in scanning.run(scan, pieces)]
    build.refuse_bad(corpus, scans)
    runs = [run for scanned in scans for run in scanned.runs]
    cuts: list[Cut] = ray.get(_lay_out.remote(corpus, work.scratch, runs))
    writing = _Phase(work, hooks, SCANNING, 1.0, "shards written")
    write = partial(_write, work.scratch, runs, work.output)
    files = [File(**said) for said in writing.run(write, [cut.as_json() for cut in cuts])]
    shards = [(cut.part, file) for cut, file in zip(cuts, files, strict=True)]
    return build.finish(corpus, found, scans, shards, work.scratch, work.output)


@ray.remote
def _survey(corpus: Corpus) -> Survey:
    return build.survey(corpus)


@ray.remote
def _lay_out(corpus: Corpus, scratch: Folder, runs: list[Run]) -> list[Cut]:
    return lay_out(corpus, scratch, runs)


def _scan(corpus: Corpus, found: Survey, scratch: Folder, said: Json) -> Json:
    return build.scan(corpus, found, found.pieces[said["number"]], scratch).as_json()


def _write(scratch: Folder, runs: list[Run], output: Folder, said: Json) -> Json:
    return asdict(write_shard(scratch, runs, Cut.of(said), output))


@dataclass(frozen=True)
class _Phase:
    """One execution of Ray Data over pieces of work."""

    work: Work
    hooks: Hooks
    begin: float  # of the build's progress
    end: float
    words: str

    def run(self, do: Callable[[Json], Json], pieces: Sequence[Json]) -> list[Json]:
        """What came of every piece, in their order. Raises the first error, and _StoppedError."""
        results: list[Json] = []
        self._say(0, len(pieces))
        for result in self._results(do, pieces):
            results.append(result)
            self._say(len(results), len(pieces))
            if self.hooks.stopping():
                raise _StoppedError
        return results

    def _results(self, do: Callable[[Json], Json], pieces: Sequence[Json]) -> Iterator[Json]:
        items = [{"piece": json.dumps(piece)} for piece in pieces]
        source = ray.data.from_items(items, override_num_blocks=len(items))
        done = source.map_batches(partial(_do, do), batch_size=1, num_cpus=1)
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in cast(pa.Table, batch).to_pylist():
                if row["failure"]:
                    raise Failure.from_json(row["failure"]).as_error()
                yield json.loads(row["result"])

    def _say(self, done: int, count: int) -> None:
        share = self.begin + (self.end - self.begin) * done / max(count, 1)
        self.hooks.say(self.work.address, share, f"{done:,} of {count:,} {self.words}")


def _do(do: Callable[[Json], Json], batch: Any) -> pa.Table:
    """One piece of work; how it went, as one row."""
    result, failure = "", ""
    try:
        result = json.dumps(do(json.loads(str(batch["piece"][0]))))
    except Exception as error:
        failure = Failure.of(error).as_json()
    return pa.Table.from_pylist([{"result": result, "failure": failure}])


def _settle() -> None:
    """Ray Data's settings, the same in every stage, since all of a process's threads share them."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    # Results must come in the order of the pieces.
    context.execution_options.preserve_order = True
