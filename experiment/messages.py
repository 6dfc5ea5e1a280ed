"""Validation errors as sentences that name the key, what was found and what would be right."""

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where a known name is close to the one found, else the known names."""
    known = sorted(known)
    close = difflib.get_close_matches(found, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}."


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """All errors, one sentence each."""
    return " ".join(_sentence(dict(e), model) for e in error.errors())


def _sentence(e: dict[str, Any], model: type[BaseModel]) -> str:
    keys, owner = _resolve(e["loc"], model)
    path = ".".join(keys)
    match e["type"]:
        case "extra_forbidden":
            return f"unknown key {path!r}; {did_you_mean(keys[-1], owner.model_fields)}"
        case "missing":
            return f"{path!r} is missing."
        case "union_tag_not_found":
            return f"'{path}.kind' is missing; it is one of {_tags(owner, keys[-1])}."
        case "union_tag_invalid":
            return f"'{path}.kind' is {e['ctx']['tag']!r}; it must be one of {_tags(owner, keys[-1])}."
        case _:
            message = e["msg"][0].lower() + e["msg"][1:]
            return f"{path!r} is {e['input']!r}, but {message}."


def _tags(owner: type[BaseModel], field: str) -> str:
    return ", ".join(repr(kind) for o in _sections(owner.model_fields[field].annotation) for kind in _kinds(o))


def _resolve(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The path as the user writes it, without the tags of unions, and the section that owns its last key."""
    keys: list[str] = []
    options: list[type[BaseModel]] = []
    for i, part in enumerate(loc):
        tagged = [o for o in options if part in _kinds(o)]
        if tagged:
            model, options = tagged[0], []
            continue
        if len(options) == 1:
            model, options = options[0], []
        keys.append(str(part))
        if i < len(loc) - 1 and part in model.model_fields:
            options = list(_sections(model.model_fields[str(part)].annotation))
    return keys, model


def _kinds(section: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(section.model_fields["kind"].annotation) if "kind" in section.model_fields else ()


def _sections(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)
