"""The one exception of the package: a sentence that says what was given, expected and to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NeuroLensError(ValueError):
    """Bad input, said in one sentence: what was given, what was expected, what to do.

    The command line prints the sentence and exits with code 2.
    """


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice most like ``name``, or None where none is alike."""
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return matches[0] if matches else None


def check_choice(kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
    """Raise unless ``name`` is one of ``choices``.

    Parameters
    ----------
    kind : str
        What is being named, such as ``"hook"``.
    name : str
        The name that was given.
    choices : iterable of str
        The names that exist.
    hint : str
        What to do to see them all; without it they are listed.

    Raises
    ------
    NeuroLensError
        Naming the nearest choice.
    """
    known = list(choices)
    if name in known:
        return
    close = nearest(str(name), known)
    guess = f"; did you mean {close!r}?" if close else ";"
    there = hint or f"there {'is' if len(known) == 1 else 'are'} {', '.join(map(repr, known))}"
    raise NeuroLensError(f"unknown {kind} {name!r}{guess} {there}")
