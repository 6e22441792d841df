"""The command line: `python -m pipeline …` and the console script `ivm-mix`."""

import argparse
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from pipeline.annotate import Job, annotate
from pipeline.config import load_profile
from pipeline.errors import BudgetSpent, InputError, RunFailed
from pipeline.status import WATCH_SECONDS, print_status
from pipeline.termination import TERMINATED, Terminated, sigterm_raises
from pipeline.yaml_files import shipped

UNFINISHED, BAD_INPUT, FAILED, INTERRUPTED = 1, 2, 3, 130
_RESUMES = "what is committed stays, and the same command (without --fresh) goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status.

    0 done; 1 done, but with more rejects than the profile allows, or stopped because the budget is spent; 2 bad input
    or configuration; 3 a worker, the storage or an endpoint failed; 130 interrupted; 143 ended by SIGTERM. After 3, 130
    and 143 the same command goes on.
    """
    options = vars(_parser().parse_args(arguments))
    try:
        with sigterm_raises():
            return _run(options.pop("command"), options)
    except InputError as error:
        print(f"ivm-mix: {error}", file=sys.stderr)
        return BAD_INPUT
    except BudgetSpent as error:
        print(f"ivm-mix: {error}; what is committed stays", file=sys.stderr)
        return UNFINISHED
    except (RunFailed, OSError) as error:
        print(f"ivm-mix: the run stopped: {error}\nivm-mix: {_RESUMES}; logs: {_LOGS}", file=sys.stderr)
        return FAILED
    except Exception:  # noqa: BLE001
        # A defect of ours: the trace is for the bug report, and the status must not read as done with rejects.
        traceback.print_exc()
        print(f"ivm-mix: this is a bug, please report it; {_RESUMES}", file=sys.stderr)
        return FAILED
    except Terminated:
        print(f"\nivm-mix: ended by SIGTERM; {_RESUMES}", file=sys.stderr)
        return TERMINATED
    except KeyboardInterrupt:
        print(f"\nivm-mix: interrupted; {_RESUMES}", file=sys.stderr)
        return INTERRUPTED


def _run(command: str, options: dict[str, Any]) -> int:
    if command == "annotate":
        return annotate(Job(**options))
    if command == "submit":
        return _submit(**options)
    if command == "status":
        print_status(**options)
        return 0
    if command == "evaluate":
        return _evaluate(**options)
    if command == "ablation":
        return _ablation(**options)
    if command == "experts":
        return _experts(**options)
    return _bench(**options)


def _submit(pass_env: str, shared: str, install: bool, stop: bool, **job: Any) -> int:
    # Imported here because every other command does without.
    from pipeline.submit import Submission, submit

    names, folders = (tuple(given.replace(",", " ").split()) for given in (pass_env, shared))
    return submit(Submission(Job(**job), names, folders, install, stop))


def _evaluate(run: str, compare: bool) -> int:
    # Imported here because it brings Ray and scikit-learn, which take seconds.
    from pipeline.evaluate import evaluate

    evaluate(run, compare)
    return 0


def _ablation(run: str) -> int:
    # As above, and PyTorch.
    from pipeline.ablation import ablation

    ablation(run)
    return 0


def _experts(check: bool, profile: str) -> int:
    # Imported here because it brings PyTorch, which takes seconds.
    from pipeline.experts_command import check_experts, print_experts

    if check:
        return BAD_INPUT if check_experts(load_profile(profile)) else 0
    print_experts()
    return 0


def _bench(profile: str, only: str | None) -> int:
    # As above.
    from pipeline.bench import bench

    bench(profile, only)
    return 0


_LOGS = "/tmp/ray/session_latest/logs"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ivm-mix", description="Annotates image-instruction pairs with scored masks.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    job = commands.add_parser("annotate", help="run every stage on a dataset and write the shards")
    _add_job(job, output="where the run lies; default runs/<dataset>", address="a Ray cluster; default a local one")
    job.add_argument("--dry-run", action="store_true", help="only say what the language model would cost")

    remote = commands.add_parser("submit", help="run `annotate` as a Ray job on a cluster, and show its log")
    _add_job(remote, output="a URI, or a path below --shared", address="the head's dashboard, http://head:8265")
    remote.add_argument(
        "--pass-env", default="", metavar="NAMES", help="environment variables that the job gets from here"
    )
    remote.add_argument("--shared", default="", metavar="DIRS", help="folders that every node has at the same path")
    remote.add_argument("--install", action="store_true", help="let Ray install what the nodes lack, as pinned here")
    remote.add_argument("--stop", action="store_true", help="stop the job that works on this output")

    status = commands.add_parser("status", help="what a run holds and whether it is live, from its files alone")
    status.add_argument("run", metavar="RUN", help="the run's folder or URI")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"follow a live run to its end or Ctrl-C, looking every {WATCH_SECONDS:g} seconds, or so many",
    )

    evaluation = commands.add_parser("evaluate", help="how good a run's masks and scores are, on its labelled pairs")
    evaluation.add_argument("run", metavar="RUN", help="the run's folder or URI")

    evaluation.add_argument(
        "--compare", action="store_true", help="also train discriminators of other objectives, and a naive one, beside"
    )

    trial = commands.add_parser("ablation", help="train a small model on a demo run by each weighting, and compare")
    trial.add_argument("run", metavar="RUN", help="the folder of a finished run of the demo")

    experts = commands.add_parser("experts", help="the experts, what they need, and which are available")
    experts.add_argument("--check", action="store_true", help="load every expert of the profile, run it on one photo")
    experts.add_argument("--profile", default="embedded", metavar="NAME|YAML", help="whose experts to check")

    bench = commands.add_parser("bench", help="speed, memory and storage, measured on this machine, on one page")
    bench.add_argument("--only", metavar="LETTERS", help="only these figures, as in 'bf'; see the README for which")
    bench.add_argument("--profile", default="embedded", metavar="NAME|YAML", help="whose experts figure c compares")
    return parser


def _add_job(parser: argparse.ArgumentParser, output: str, address: str) -> None:
    parser.add_argument(
        "--dataset", required=True, metavar="NAME|YAML", help="a shipped manifest (demo) or a YAML file"
    )
    parser.add_argument(
        "--profile", default="embedded", metavar="NAME|YAML", help=f"{', '.join(shipped('profile'))}, or a YAML file"
    )
    parser.add_argument("--output", metavar="DIR|URI", help=output)
    parser.add_argument("--limit", type=int, metavar="N", help="only the manifest's first N pairs")
    parser.add_argument("--address", metavar="ADDRESS", help=address)
    parser.add_argument("--update", action="store_true", help="redo what changed settings make stale")
    parser.add_argument("--fresh", action="store_true", help="delete the run first and start over")
    parser.add_argument("--retry-rejects", action="store_true", help="try the rejected items again")
    parser.add_argument(
        "--discriminator",
        metavar="RUN",
        help="score with the discriminator that this run trained (its folder or URI), instead of training one",
    )
