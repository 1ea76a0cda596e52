"""Records: how the fields of a struct are written to a Redis hash, and read back.

The annotation of each field that is part of a record has a `FieldType`: `since: Annotated[float, INSTANT]`. A field
that is missing or empty in a record has the default of the struct, so that a record of another version can be read. A
required field that is missing, or a value that cannot be read, raises.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec

from aism_engine.clock import from_iso, iso

S = TypeVar("S")


class FieldType(NamedTuple):
    """Encoder and decoder of one type of field. Without a decoder, the text is the value. `""` is not decoded."""

    encode: Callable[[Any], str]
    decode: Callable[[str], Any] | None = None


TEXT: Final = FieldType(lambda value: value or "")
FLAG: Final = FieldType(lambda value: "1" if value else "", bool)
INTEGER: Final = FieldType(str, int)
COUNT: Final = FieldType(lambda value: str(value) if value else "", int)
NUMBER: Final = FieldType(lambda value: repr(value).removesuffix(".0"), float)
SCORE: Final = FieldType(lambda value: "" if value is None else repr(value), float)
INSTANT: Final = FieldType(lambda value: iso(value) if value else "", from_iso)


def choice(values: Iterable[str]) -> FieldType:
    """Return the type of a field that holds one of these texts or StrEnum members. Other texts raise KeyError."""
    return FieldType(lambda value: str(value or ""), {str(value): value for value in values}.__getitem__)


def json(form: Any, *, omit_empty: bool = False) -> FieldType:  # noqa: ANN401 - a type form has no type of its own yet
    """Return the type of a field in JSON; `omit_empty` writes an empty value as an empty text."""
    decode = msgspec.json.Decoder(form).decode
    return FieldType(lambda value: "" if omit_empty and not value else msgspec.json.encode(value).decode(), decode)


class RecordTable(Generic[S]):
    """Encodes and decodes one kind of record. `fields` has the order of the attributes of the struct."""

    def __init__(
        self, struct: type[S], key: str, *, required: Iterable[str] = (), renamed: Mapping[str, str] = {}
    ) -> None:
        """`key` is the attribute that is part of the Redis key; it is empty if there is none.

        `renamed` maps an attribute to its field, if the field has another name.
        """
        types = [
            (renamed.get(attribute, attribute), attribute, each)
            for attribute, form in get_type_hints(struct, include_extras=True).items()
            for each in get_args(form)
            if isinstance(each, FieldType)
        ]
        self.fields: Final = tuple(name for name, _, _ in types)
        self._struct = struct
        self._key = key
        self._required = frozenset(required)
        self._encoders = {name: (attribute, each.encode) for name, attribute, each in types}
        self._decoders = [(attribute, each.decode) for _, attribute, each in types]

    def encode(self, value: S, names: Iterable[str] = ()) -> dict[str, str]:
        """Return the fields of a record: those in `names`, or all of them if `names` is empty."""
        encoders = self._encoders
        found = {name: encoders[name] for name in names} if names else encoders
        return {name: encode(getattr(value, attribute)) for name, (attribute, encode) in found.items()}

    def from_values(self, key: str, values: Sequence[str]) -> S:
        """Read the values of `fields` back. Raises KeyError or ValueError for a damaged record."""
        found: dict[str, Any] = {}
        for (attribute, decode), text in zip(self._decoders, values, strict=True):
            if text:
                found[attribute] = text if decode is None else decode(text)
        if not self._required <= found.keys():
            raise ValueError(f"missing fields: {', '.join(sorted(self._required - found.keys()))}")
        if self._key:
            found[self._key] = key
        return self._struct(**found)
