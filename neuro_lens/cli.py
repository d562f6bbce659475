"""The command line: one command, ``neuro-lens``, that imports what is heavy only when it runs."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from .cli_prepare import convert_checkpoint, prepare

DIFFERENT = 1
BAD_INPUT = 2
STOPPED = 130
NAMED = ("sur_v1", "allen_events", "steinmetz")


class _OneSentence(click.Group):
    """Says bad input in one sentence on standard error and exits with code 2; Ctrl-C with 130."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stopped:
            _refuse(ctx, str(stopped) or "stopped", STOPPED)
        except ValueError as error:
            from .base import NeuroLensError

            if not isinstance(error, NeuroLensError):
                raise
            _refuse(ctx, str(error))
        except OSError as error:
            if error.filename is None:
                raise
            _refuse(
                ctx,
                f"{error.filename} cannot be read or written ({error.strerror}); check the path "
                "and its permissions, or give another place",
            )


def _refuse(ctx: click.Context, sentence: str, code: int = BAD_INPUT) -> None:
    click.echo(f"neuro-lens: {' '.join(sentence.split())}", err=True)
    ctx.exit(code)


@click.group(cls=_OneSentence, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="neuro-lens", message="%(version)s")
def main() -> None:
    """Open up transformers trained on brain recordings."""


EXECUTED = (
    click.option("--workers", type=click.IntRange(1), default=1, help="Processes side by side."),
    click.option("--executor", default="local", show_default=True, help="local, ray or slurm."),
    click.option(
        "--option",
        "options",
        metavar="NAME=VALUE",
        multiple=True,
        help="Of ray or slurm, such as slurm_partition=gpu; may be given several times.",
    ),
)


def _executed(command: Any) -> Any:
    for option in reversed(EXECUTED):
        command = option(command)
    return command


def _named(command: Any) -> Any:
    """Add the arguments that name a study and its results."""
    quick = "Little training, few controls: to see that it runs; the results mean nothing."
    command = click.option("--quick", is_flag=True, help=quick)(command)
    place = click.option("--out", type=click.Path(path_type=Path), help="Folder for the results.")
    return click.argument("study", metavar="STUDY.yaml")(place(command))


@main.command()
@_named
@_executed
def run(
    study: str,
    out: Path | None,
    quick: bool,
    workers: int,
    executor: str,
    options: tuple[str, ...],
) -> None:
    """Run a study, going on where an earlier run of it stopped."""
    _run(_loaded(study, quick), out, workers, executor, options)


@main.command()
@_named
@click.option("--workers", type=click.IntRange(1), default=1, help="Processes side by side.")
def plan(study: str, out: Path | None, quick: bool, workers: int) -> None:
    """List the cells of a study, done and to do, with time and disk. Nothing is run or written."""
    from .studies import plan_study, plan_text

    click.echo(plan_text(plan_study(_loaded(study, quick), out), workers))


@main.command()
@click.argument("run_a", metavar="RUN_A", type=click.Path(path_type=Path))
@click.argument("run_b", metavar="RUN_B", type=click.Path(path_type=Path))
@click.option("--tolerance", type=float, default=0.0, help="Numbers this close count as equal.")
@click.pass_context
def diff(ctx: click.Context, run_a: Path, run_b: Path, tolerance: float) -> None:
    """Compare two runs: settings, inputs, versions, hashes and tables.

    The exit code is 0 where they are the same and 1 where they differ.
    """
    from .studies import compare_runs, diff_text

    found = compare_runs(run_a, run_b, tolerance=tolerance)
    click.echo(diff_text(found))
    if len(found):
        ctx.exit(DIFFERENT)


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default="demo", show_default=True, help="Results."
)
@click.option("--seeds", metavar="0,1,…", help="One decoder a seed; by default the study's.")
@_executed
def demo(
    out: Path, seeds: str | None, workers: int, executor: str, options: tuple[str, ...]
) -> None:
    """Run the bundled study: V1 gratings, six mice."""
    from .studies import bundled_study, load_study

    study = load_study(bundled_study("v1_gratings")).model_dump(exclude_unset=True)
    if seeds is not None:
        study["seeds"] = _numbers(seeds)
    _run(study, out, workers, executor, options)


def _loaded(study: str, quick: bool) -> Any:
    from .studies import load_study, quick_form

    return quick_form(load_study(study)) if quick else load_study(study)


def _run(
    study: Any, out: Path | None, workers: int, executor: Any, options: tuple[str, ...]
) -> None:
    from .studies import StudyStopped, run_study

    try:
        how: dict[str, Any] = {"executor": executor, "options": _options(options)}
        click.echo(run_study(study, out, workers=workers, **how))
    except StudyStopped as stopped:
        again = shlex.join(["neuro-lens", *sys.argv[1:]])
        raise StudyStopped(f"{stopped}; {again} goes on from there") from None


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """Return NAME=VALUE pairs, numbers as numbers."""
    import yaml

    from .base import NeuroLensError

    found = {}
    for pair in given:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise NeuroLensError(f"--option is {pair!r}; give NAME=VALUE")
        found[name] = yaml.safe_load(value)
    return found


@main.command()
@click.argument("decoder", metavar="DECODER_FOLDER|MODULE:FUNCTION")
@click.option("--trace", is_flag=True, help="Print taps for a decoder that no adapter knows.")
def hooks(decoder: str, trace: bool) -> None:
    """List the hook points of a decoder.

    A saved decoder is named by its folder, any other by a function that returns it and an example
    of its inputs: my_code:make for make() in my_code.py. --trace runs it on the example and prints
    a table of taps to start from.
    """
    from . import hooks as room

    if trace:
        click.echo(room.trace(*_made(decoder)))
        return
    table = room.hook_model(_decoder(decoder)).hook_table()
    table["n_heads"] = table["n_heads"].astype("string").fillna("")
    table["optional"] = table["optional"].map({True: "optional", False: ""})
    table["axis"] = table["axis"].astype("string").fillna("")
    click.echo(table.to_string(index=False, justify="left"))


@main.group()
def data() -> None:
    """Import or simulate recordings."""


data.add_command(prepare)
data.add_command(convert_checkpoint)


@data.command("import")
@click.argument("name", metavar="NAME")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--source", type=click.Path(path_type=Path), help="Folder with the source files.")
def import_(name: str, out: Path, source: Path | None) -> None:
    """Write the recordings NAME (sur_v1, allen_events or steinmetz) as torch_brain files."""
    from . import recordings
    from .base import NeuroLensError, check_choice

    importers = {name: getattr(recordings, name) for name in NAMED}
    check_choice("data set", name, importers)
    source = source or recordings.find_data(name)
    if source is None:
        raise NeuroLensError(
            f"the source files of {name} are not on this machine; name their folder with --source"
        )
    _list(importers[name](source, out), out)


@data.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--n-animals", type=int, default=6, show_default=True)
@click.option("--n-units", type=int, default=55, show_default=True, help="An animal, ± a fifth.")
@click.option("--n-repeats", type=int, default=16, show_default=True, help="Blocks of 8 trials.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--snr", type=float, default=1.0, show_default=True, help="Factor on answers.")
@click.option("--order", default="random", show_default=True, help="random or fixed.")
@click.option("--tuned/--untuned", default=True, help="Whether units prefer a direction.")
@click.option("--line-effect/--no-line-effect", default=True, help="Whether Cre lines differ.")
@click.option("--running-confound", is_flag=True, help="Animals run more near 0 degrees.")
def simulate(out: Path, **settings: Any) -> None:
    """Write simulated recordings and, in truth/, what they were made from."""
    from . import recordings

    names, _ = recordings.simulate(out, **settings)
    _list(names, out)


def _list(names: list[str], out: Path) -> None:
    for name in names:
        click.echo(out / f"{name}.h5")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        from .base import NeuroLensError

        raise NeuroLensError(
            f"--seeds is {text!r}; give whole numbers with commas between them, such as 0,1,2"
        ) from None


def _decoder(name: str) -> Any:
    if ":" in name and not Path(name).exists():
        return _made(name)[0]
    from .decoders import load_decoder

    return load_decoder(Path(name))


def _made(name: str) -> tuple[Any, Any]:
    """Return the decoder and the inputs that a function, named ``module:function``, makes."""
    from .base import NeuroLensError

    wanted = "a function that returns (decoder, inputs)"
    module, colon, function = name.partition(":")
    if not (colon and module and function):
        raise NeuroLensError(f"{name} names no function; give MODULE:FUNCTION, {wanted}")
    sys.path.insert(0, "")  # as python -m does
    try:
        make = getattr(importlib.import_module(module), function)
        made = make()
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        raise NeuroLensError(f"{name} cannot be run ({said}); name {wanted}") from error
    finally:
        sys.path.remove("")
    if not (isinstance(made, tuple) and len(made) == 2):
        raise NeuroLensError(f"{name} returned a {type(made).__name__}; name {wanted}")
    return made


if __name__ == "__main__":
    main()
