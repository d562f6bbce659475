"""The commands ``neuro-lens data prepare …`` and ``convert-checkpoint``: others' files to ours."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def prepare() -> None:
    """Turn a published data set's files into recordings."""


@prepare.command()
@click.option("--raw", type=click.Path(path_type=Path), required=True, help="Folder of NWB files.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--sessions", multiple=True, metavar="ID…", help="Sessions: 1,2,3 or 1 2 3.")
@click.option("--select", metavar="CONDITIONS", help='"cre_line=Cux2-CreERT2 and area=VISp".')
@click.option("--split", default="published", show_default=True, help="published or blocks.")
@click.argument("more_sessions", nargs=-1, metavar="[ID]...")
def allen(
    raw: Path,
    out: Path,
    sessions: tuple[str, ...],
    select: str | None,
    split: str,
    more_sessions: tuple[str, ...],
) -> None:
    """Prepare two-photon sessions of the Allen Brain Observatory, Visual Coding.

    NWB files that --raw does not hold are downloaded there, with allensdk in an environment of its
    own. Without --sessions or --select, every file in --raw is prepared. A session that cannot be
    used is skipped and named; the same command goes on where it stopped.
    """
    from .recordings.allen_prepare import prepare_allen

    given = (*sessions, *more_sessions)
    table = prepare_allen(
        raw,
        out,
        sessions=[i for part in given for i in part.split(",")] if given else None,
        select=select,
        split=split,
        say=lambda line: click.echo(line, err=True),
    )
    for row in table.itertuples():
        if row.status != "skipped":
            click.echo(out / f"{row.session}.h5")
    counts = table["status"].value_counts().sort_index()
    click.echo(", ".join(f"{n} {status}" for status, n in counts.items()), err=True)


@click.command("convert-checkpoint")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--yes", is_flag=True, help="Do not ask: the file may run code.")
def convert_checkpoint(checkpoint: Path, out: Path, yes: bool) -> None:
    """Turn a checkpoint that holds more than weights into safetensors and JSON.

    Reading such a file runs the code that it names. It is read in a process of its own, which sees
    neither environment variables nor paths of this one but has your rights: convert only what you
    trust.
    """
    from .base import NeuroLensError
    from .decoders import converting

    named = ", ".join(converting.foreign_classes(checkpoint)) or "nothing but weights"
    asked = f"{checkpoint} names {named}. Run it in a process of its own?"
    try:
        agreed = yes or click.confirm(asked, err=True)
    except click.Abort:
        agreed = False
    if not agreed:
        raise NeuroLensError(f"{checkpoint} was not converted; it names {named}; agree with --yes")
    for lost in converting.convert_checkpoint(checkpoint, out, trusted=True):
        click.echo(f"not kept: {lost}", err=True)
    click.echo(out)
