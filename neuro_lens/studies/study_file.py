"""Reading a study file: errors name the file, the line and the nearest valid field."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ..base import NeuroLensError, nearest
from .checking import intervention_problem
from .schema import Study, resolved
from .sweeps import variants


def load_study(study: str | Path | Mapping[str, Any] | Study) -> Study:
    """Read and check a study.

    Parameters
    ----------
    study : path, mapping or Study
        A YAML file, or the same fields as a mapping.

    Raises
    ------
    NeuroLensError
        When there is no such file, it is not YAML, or a field is unknown or wrong: in one
        sentence with the file, the line and the nearest valid field.
    """
    if isinstance(study, Study):
        _validate(study.model_dump(mode="json", exclude_unset=True), "the study", {})
        return study
    if isinstance(study, Mapping):
        return _validate(dict(study), "the study", {})
    path = Path(study)
    node = _compose(path)
    lines: dict[tuple, int] = {}
    _mark(node, (), lines, path)
    return _validate(yaml.safe_load(path.read_text("utf-8")), str(path), lines)


def bundled_study(name: str) -> Path:
    """Return the file of a study that comes with the package, such as ``"v1_gratings"``."""
    return Path(__file__).parent / f"{name}.yaml"


def _compose(path: Path) -> yaml.Node:
    """Parse a file into YAML nodes, which know their lines."""
    try:
        text = path.read_text("utf-8")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise NeuroLensError(f"there is no study file {path}; check the path") from None
    except UnicodeDecodeError:
        raise NeuroLensError(f"{path} is not a text file; give a YAML study") from None
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise NeuroLensError(f"{path}{where}: not YAML ({error.problem}); mend it") from None
    except (yaml.YAMLError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise NeuroLensError(f"{path}: not YAML ({what}); mend it") from None
    if not isinstance(node, yaml.MappingNode):
        raise NeuroLensError(
            f"{path} holds no fields; a study is a mapping that starts with a 'name:'"
        )
    return node


def _mark(node: yaml.Node, place: tuple, lines: dict[tuple, int], path: Path) -> None:
    """Note the line of every field and list item, refusing a field that stands there twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag != "tag:yaml.org,2002:str":
                where = f"{path}, line {line}"
                raise NeuroLensError(f"{where}: a field's name is text; put it in quotes")
            here = (*place, key.value)
            if here in lines:
                raise NeuroLensError(
                    f"{path}, line {line}: {_dotted(here)} stands there twice (first on line "
                    f"{lines[here]}); keep one"
                )
            lines[here] = line
            _mark(value, here, lines, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[*place, index] = value.start_mark.line + 1
            _mark(value, (*place, index), lines, path)


def _validate(fields: Mapping[str, Any], source: str, lines: Mapping[tuple, int]) -> Study:
    def complain(place: tuple, sentence: str) -> NeuroLensError:
        line = _line(place, lines)
        return NeuroLensError(
            f"{source}, line {line}: {sentence}" if line else f"{source}: {sentence}"
        )

    study = _checked(fields, lines, complain)
    try:
        swept = variants(study)
    except NeuroLensError as error:
        raise complain(("sweep",), str(error)) from None
    for variant in swept if study.sweep else []:

        def complain_of_it(place: tuple, sentence: str, label: str = variant.label) -> Exception:
            own = [name for name in study.sweep if _dotted(place).startswith(name)]
            return complain(("sweep", *own[:1]), f"with {label}, {sentence}")

        _checked(variant.fields, {}, complain_of_it)
    return study


def _checked(
    fields: Mapping[str, Any],
    lines: Mapping[tuple, int],
    complain: Callable[[tuple, str], Exception],
) -> Study:
    """Return the study, or raise what ``complain`` makes of the first place that is wrong."""
    try:
        study = Study.model_validate(fields)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False)
        place = min((_field(p["loc"]) for p in problems), key=lambda x: _line(x, lines) or 0)
        here = [p for p in problems if _field(p["loc"]) == place]
        raise complain(place, _sentence(place, here)) from None
    for place, sentence in _contradictions(study):
        raise complain(place, sentence)
    return study


def _contradictions(study: Study) -> Iterator[tuple[tuple, str]]:
    """Yield what one section says against another: the place and a sentence."""
    if len(set(study.seeds)) < len(study.seeds):
        yield ("seeds",), f"seeds is {study.seeds}, but each may stand there only once"
    depth = study.decoder.depth
    by_name: dict[str, list[str]] = {}
    for hook in study.sae.hooks:
        by_name.setdefault(resolved(hook, depth), []).append(hook)
    for same in by_name.values():
        if len(same) > 1:
            yield (
                ("sae", "hooks"),
                f"sae.hooks names {' and '.join(same)}, which are one hook of a decoder of depth "
                f"{depth}; keep one",
            )
    if study.ablation.hook not in study.sae.hooks:
        yield (
            ("ablation", "hook"),
            f"ablation.hook is {study.ablation.hook!r}, but only the hooks of sae.hooks "
            f"({', '.join(study.sae.hooks)}) have an SAE; choose one of them",
        )
    decision = study.ablation.decision_hook
    asked = "decision_hook" in study.ablation.model_fields_set and decision is not None
    if asked and resolved(str(decision), depth) not in by_name:
        yield (
            ("ablation", "decision_hook"),
            f"ablation.decision_hook is {decision!r}, but only the hooks of sae.hooks "
            f"({', '.join(study.sae.hooks)}) have an SAE; add it there, or set it to null",
        )
    if study.ablation.variable not in study.tuning.variables:
        yield (
            ("ablation", "variable"),
            f"ablation.variable is {study.ablation.variable!r}, but features are chosen by "
            f"tuning.variables ({', '.join(study.tuning.variables)}); choose one of them",
        )
    if study.decoder.model == "poyo" and study.recordings.tasks == "published":
        yield (
            ("decoder", "model"),
            "decoder.model is 'poyo', and recordings.tasks: published are tasks of calcium traces; "
            "leave one of them out",
        )
    of_values = {
        "recordings.pool": (study.recordings.pool, 1),
        "recordings.normalise": (study.recordings.normalise, None),
        "decoder.noise": (study.decoder.noise, 0),
        "decoder.mixup": (study.decoder.mixup, 0),
    }
    wrong = {name: none for name, (value, none) in of_values.items() if value != none}
    if study.decoder.model == "poyo" and wrong:
        off = ", ".join(f"{n}: {'null' if v is None else v}" for n, v in wrong.items())
        yield (
            ("decoder", "model"),
            "decoder.model is 'poyo', which reads spikes, and these have no values to be pooled, "
            f"scaled, disturbed or mixed; set {off}",
        )
    if study.ablation.second == study.ablation.variable:
        yield (
            ("ablation", "second"),
            f"ablation.second is {study.ablation.second!r}, which is ablation.variable too; name "
            "another variable",
        )
    hooks = [*study.sae.hooks, *by_name]
    for name, given in study.ablation.interventions.items():
        said = intervention_problem(name, given, hooks, study.sae.d_sae)
        if said:
            yield ("ablation", "interventions", name), said


def _sentence(place: tuple, problems: list[Any]) -> str:
    """Say in words what is wrong with a field and what to do."""
    kind, given = problems[0]["type"], problems[0]["input"]
    if kind == "extra_forbidden":
        known = list(_section(place).model_fields)
        close = nearest(str(place[-1]), known)
        guess = f"did you mean {_dotted((*place[:-1], close))!r}? " if close else ""
        there = "There" if guess else "there"
        return f"unknown field {_dotted(place)!r}; {guess}{there} are {', '.join(known)}"
    if kind == "missing":
        return f"the field {_dotted(place)!r} is missing; add it"
    if kind == "value_error":
        return f"{_dotted(place)} {problems[0]['msg'].removeprefix('Value error, ')}"
    name = next(part for part in reversed(place) if isinstance(part, str))
    field = _section(place).model_fields[name]
    default = _default(field)
    if isinstance(default, BaseModel) and len(place) == 1:
        fields = ", ".join(type(default).model_fields)
        return f"{_dotted(place)} is {given!r}, but should be a section with the fields {fields}"
    expected = " or ".join(
        dict.fromkeys(p["msg"].removeprefix("Input should be ") for p in problems)
    )
    hint = "" if field.is_required() or default is None else f"; its default is {default!r}"
    return f"{_dotted(place)} is {given!r}, but should be {expected}{hint}"


def _field(place: tuple) -> tuple:
    """Return a place in the file, without the names that pydantic gives to alternatives."""
    kept: list[Any] = []
    section: type[BaseModel] | None = Study
    for part in place:
        if section is None and isinstance(part, str):
            continue
        kept.append(part)
        if section is not None:
            field = section.model_fields.get(str(part))
            default = _default(field) if field else None
            section = type(default) if isinstance(default, BaseModel) else None
    return tuple(kept)


def _section(place: tuple) -> type[BaseModel]:
    """Return the section that holds a field, or an item of a field."""
    section: type[BaseModel] = Study
    for part in place[:-1]:
        field = section.model_fields.get(str(part))
        default = _default(field) if field else None
        section = type(default) if isinstance(default, BaseModel) else section
    return section


def _default(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _line(place: tuple, lines: Mapping[tuple, int]) -> int | None:
    """Return the line of a place, or of the closest thing around it that stands in the file."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)


def _dotted(place: tuple) -> str:
    """Write a place as ``section.field[item]``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text
