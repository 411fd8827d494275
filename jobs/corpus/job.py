"""The corpus stage: from sources to shards, on Ray.

`run_corpus` runs the two phases of `build.py` for each corpus with Ray Data. Its rows are pieces
of work and their results, some kilobytes each. Images go from the source through scratch into the
shards and never enter Ray's object store: Ray is cheapest with few large tasks. Nothing here
decides what to run, commits or retries.
"""

from __future__ import annotations

import json
import logging
import time
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
    """The user asked to stop; finished pieces are kept in scratch."""


def run_corpus(works: Sequence[Work], hooks: Hooks) -> None:
    """Build each work's corpus (spec: `Corpus`, no inputs) into its output folder.

    Output: `<part>-<number>.parquet` by the corpus's form, `quarantine.parquet` and `_index.json`.
    Counts: see `build.finish`. A work that fails is reported with its error; the others go on.
    """
    _configure_ray_data()
    for work in works:
        if hooks.stopping():
            return
        begun = time.monotonic()
        try:
            hooks.done(work.address, _build(work, hooks).took(time.monotonic() - begun))
        except _StoppedError:
            return
        except Exception as error:
            hooks.done(work.address, error)


def _build(work: Work, hooks: Hooks) -> Outcome:
    corpus = cast(Corpus, work.spec).with_absolute_paths()
    hooks.say(work.address, 0.0, "listing the source")
    found: Survey = ray.get(_survey.remote(corpus))
    build.resume(work.scratch, found)
    scanning = _Phase(work, hooks, 0.0, SCANNING, "units of the source read")
    scan = partial(_scan, corpus, found, work.scratch)
    pieces = [{"number": piece.number} for piece in found.pieces]
    scans = [Scan.of(result) for result in scanning.run(scan, pieces)]
    build.refuse_bad(corpus, found, scans)
    runs = [run for scanned in scans for run in scanned.runs]
    cuts: list[Cut] = ray.get(_lay_out.remote(corpus, work.scratch, runs))
    writing = _Phase(work, hooks, SCANNING, 1.0, "shards written")
    write = partial(_write, corpus, work.scratch, runs, work.output)
    files = [File(**result) for result in writing.run(write, [cut.as_json() for cut in cuts])]
    shards = [(cut.part, file) for cut, file in zip(cuts, files, strict=True)]
    return build.finish(corpus, found, scans, shards, work.scratch, work.output)


@ray.remote
def _survey(corpus: Corpus) -> Survey:
    return build.survey(corpus)


@ray.remote
def _lay_out(corpus: Corpus, scratch: Folder, runs: list[Run]) -> list[Cut]:
    return lay_out(corpus, scratch, runs)


def _scan(corpus: Corpus, found: Survey, scratch: Folder, piece: Json) -> Json:
    return build.scan(corpus, found, found.pieces[piece["number"]], scratch).as_json()


def _write(corpus: Corpus, scratch: Folder, runs: list[Run], output: Folder, cut: Json) -> Json:
    return asdict(write_shard(scratch, runs, Cut.of(cut), output, corpus.form))


@dataclass(frozen=True)
class _Phase:
    """One execution of Ray Data over pieces of work."""

    work: Work
    hooks: Hooks
    begin: float  # of the build's progress, in [0, 1]
    end: float
    words: str  # what is counted, for the progress line

    def run(self, do: Callable[[Json], Json], pieces: Sequence[Json]) -> list[Json]:
        """The result of each piece, in order. Raises the first error, or _StoppedError."""
        results: list[Json] = []
        self._report(0, len(pieces))
        for result in self._iter_results(do, pieces):
            results.append(result)
            self._report(len(results), len(pieces))
            if self.hooks.stopping():
                raise _StoppedError
        return results

    def _iter_results(self, do: Callable[[Json], Json], pieces: Sequence[Json]) -> Iterator[Json]:
        items = [{"piece": json.dumps(piece)} for piece in pieces]
        source = ray.data.from_items(items, override_num_blocks=len(items))
        done = source.map_batches(partial(_run_piece, do), batch_size=1, num_cpus=1)
        for batch in done.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in cast(pa.Table, batch).to_pylist():
                if row["failure"]:
                    raise Failure.from_json(row["failure"]).as_error()
                yield json.loads(row["result"])

    def _report(self, done: int, count: int) -> None:
        share = self.begin + (self.end - self.begin) * done / max(count, 1)
        self.hooks.say(self.work.address, share, f"{done:,} of {count:,} {self.words}")


def _run_piece(do: Callable[[Json], Json], batch: Any) -> pa.Table:
    """Run one piece of work; one row with its result or its failure."""
    result, failure = "", ""
    try:
        result = json.dumps(do(json.loads(str(batch["piece"][0]))))
    except Exception as error:
        failure = Failure.of(error).as_json()
    return pa.Table.from_pylist([{"result": result, "failure": failure}])


def _configure_ray_data() -> None:
    """Set Ray Data's settings, the same in every stage: all threads of a process share them."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.print_on_execution_start = False
    context.enable_progress_bars = False
    # `_Phase.run` relies on results in the order of the pieces.
    context.execution_options.preserve_order = True
