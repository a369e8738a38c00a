"""How the tags of words spell entities: BIO, IOB1, IOBES, or nothing (part of speech).

Ramshaw & Marcus 1995 (IOB1); Tjong Kim Sang & Veenstra 1999 (IOB2, called BIO; IOE and others).
A chunk tag is "O" or a prefix, a hyphen and the entity's type: "B-PER".
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from fmjax.core.errors import DataError

PREFIXES = {"BIO": "BI", "IOB1": "BI", "IOBES": "BIES"}
SCHEMES = (*PREFIXES, "plain")
_BEGIN, _END = set("BSU"), set("OESLU")  # of an entity; after the latter nothing goes on
_ALIASES = {"IOB2": "BIO", "BIOES": "IOBES", "POS": "plain"}


class Entity(NamedTuple):
    """Words `first` to `stop` − 1 are one entity."""

    type: str
    first: int
    stop: int


class Fault(NamedTuple):
    """Where tags break their scheme, and what to do about it."""

    sentence: int
    word: int
    problem: str


def scheme_name(scheme: str) -> str:
    """One of SCHEMES, by its own or another usual name.

    Raises:
      DataError: an unknown name.
    """
    for name in SCHEMES:
        if scheme.casefold() == name.casefold():
            return name
    if scheme.upper() in _ALIASES:
        return _ALIASES[scheme.upper()]
    raise DataError(f'scheme="{scheme}" is unknown; use {", ".join(SCHEMES)}')


def split_tag(tag: str) -> tuple[str, str]:
    """("B", "PER") of "B-PER"; ("O", "") of "O"; ("", tag) where there is no prefix."""
    prefix, hyphen, kind = tag.partition("-")
    if hyphen and kind and len(prefix) == 1 and prefix.isupper() and prefix != "O":
        return prefix, kind
    return ("O", "") if tag == "O" else ("", tag)


def detect(sentences: Sequence[Sequence[str]]) -> str | Fault:
    """The scheme of a whole file, or the first place that no scheme explains.

    Tags of which none has the prefix B- or I-, E- or S- are plain. With B and I alone, the file
    is BIO if that explains every tag, else IOB1.
    """
    prefixes = {split_tag(tag)[0] for tags in sentences for tag in tags}
    if not prefixes & set("BIES"):
        # "X-ray" alone does not make chunks; a file of nothing but O has no entity to spell.
        return "BIO" if prefixes <= {"O"} else "plain"
    if prefixes & set("ES"):
        fault = first_fault(sentences, "IOBES")
        return "IOBES" if fault is None else fault
    as_bio, as_iob1 = first_fault(sentences, "BIO"), first_fault(sentences, "IOB1")
    if as_bio is None:
        return "BIO"
    if as_iob1 is None:
        return "IOB1"
    if as_bio[:2] == as_iob1[:2]:  # a tag that neither has
        return as_bio
    return as_bio._replace(
        problem=f"{as_bio.problem}; nor is the file IOB1, as elsewhere B- begins an entity that "
        "I- would begin there"
    )


def first_fault(sentences: Sequence[Sequence[str]], scheme: str) -> Fault | None:
    """The first tag that `scheme` lacks, else the first that breaks it; None if there is none."""
    if scheme == "plain":
        return None
    for number, tags in enumerate(sentences):
        for word, tag in enumerate(tags):
            if problem := _unknown(tag, scheme):
                return Fault(number, word, problem)
    for number, tags in enumerate(sentences):
        before = "O"
        for word, tag in enumerate(tags):
            if problem := _break(before, tag, scheme):
                return Fault(number, word, problem)
            before = tag
        if scheme == "IOBES" and (problem := _break(before, "O", scheme)):
            return Fault(number, len(tags) - 1, problem.replace('"O" after', "the end after"))
    return None


def _unknown(tag: str, scheme: str) -> str:
    prefix, kind = split_tag(tag)
    known = PREFIXES[scheme]
    if prefix == "O" or prefix in set(known):
        return ""
    prefixes = ", ".join(f"{p}-" for p in known)
    if prefix in ("L", "U"):
        remedy = "of BILOU write L- as E- and U- as S-"
    elif prefix in ("E", "S"):
        remedy = 'read the file with scheme="IOBES"'
    elif prefix:
        remedy = f"{prefix}- is no prefix of {scheme}; write one of these"
    else:
        remedy = f'write B-{kind} and I-{kind}, or read all tags as they are with scheme="plain"'
    return f'tag "{tag}" has none of the prefixes {prefixes} of {scheme}; {remedy}'


def _break(before: str, tag: str, scheme: str) -> str:
    """What is wrong with `tag` right after `before`; "" if nothing."""
    (last, last_kind), (prefix, kind) = split_tag(before), split_tag(tag)
    same = last_kind == kind and last != "O"
    after = f'"{tag}" after "{before}"'
    if scheme == "BIO" and prefix == "I" and not same:
        return (
            f"{after} continues no entity, so that the tags are not BIO; write "
            f'"B-{kind}", or read the file with scheme="IOB1"'
        )
    if scheme == "IOB1" and prefix == "B" and not same:
        return (
            f"{after} does not divide two {kind} entities, which is what B- is for in IOB1; "
            f'write "I-{kind}", or read the file with scheme="BIO"'
        )
    if scheme == "IOBES":
        is_open = last in ("B", "I")
        if prefix in ("I", "E") and not (is_open and same):
            right = "B" if prefix == "I" else "S"
            return f'{after} continues no entity in IOBES; write "{right}-{kind}"'
        if is_open and prefix not in ("I", "E"):
            closed = "S" if last == "B" else "E"
            return (
                f'{after} leaves an entity without end in IOBES; write "{closed}-{last_kind}" for '
                f'"{before}"'
            )
    return ""


def to_bio(tags: Sequence[str]) -> list[str]:
    """IOB1 as BIO: every entity begins with B-."""
    out, before = [], ("O", "")
    for tag in tags:
        prefix, kind = split_tag(tag)
        begins = prefix == "I" and (before[0] == "O" or before[1] != kind)
        out.append(f"B-{kind}" if begins else tag)
        before = (prefix, kind)
    return out


def entities(tags: Sequence[str], scheme: str = "BIO") -> list[Entity]:
    """The entities that tags spell, also where a model's tags break the scheme.

    As the CoNLL evaluation reads them: an entity ends where its type does, and I- or E- after
    something else begins one. L- and U- of BILOU are other names of E- and S-. In the plain scheme
    every word that is not "O" stands alone.
    """
    if scheme == "plain":
        return [Entity(tag, i, i + 1) for i, tag in enumerate(tags) if tag != "O"]
    found: list[Entity] = []
    last, open_type, first = "O", "", 0
    for i, tag in enumerate([*tags, "O"]):
        prefix, kind = split_tag(tag)
        begins = prefix in _BEGIN or last in _END or kind != open_type
        if last != "O" and begins:
            found.append(Entity(open_type, first, i))
        if prefix != "O" and begins:
            open_type, first = kind, i
        last = prefix
    return found


def label_names(tags: Iterable[str], scheme: str) -> tuple[str, ...]:
    """The label set of a file: "O", then for each type in order B- and I- (E- and S-).

    A type has all prefixes of its scheme, whether or not the file uses them. Plain tags are in
    order, with "O" first if there is one.
    """
    tags = set(tags)
    if scheme == "plain":
        return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
    kinds = sorted({split_tag(tag)[1] for tag in tags - {"O"}})
    return ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in PREFIXES[scheme]))


def scheme_of_names(names: Iterable[str]) -> str:
    """BIO, IOBES or plain, by the prefixes of a label set."""
    names = set(names)
    prefixes = {split_tag(name)[0] for name in names} - {"O"}
    for scheme in ("BIO", "IOBES"):
        if prefixes and prefixes <= set(PREFIXES[scheme]):
            return scheme
    return "plain"
