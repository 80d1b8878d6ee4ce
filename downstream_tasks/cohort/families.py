"""Which columns say that people are related, however they are spelt."""

import logging
import re
from collections.abc import Sequence

from src.utils.errors import UserError

logger = logging.getLogger(__name__)

FAMILY_KEY = "family_id"  # asked for by default; a cohort without families has no such column
_FAMILY = {"familyid", "famid", "family", "familynumber", "familynr", "householdid"}
# Relatives that are no family id: which column to use, if any, is for the user to say.
_RELATIVES = re.compile(r"^(mother|father|parent|mum|dad|twin|sib|sibling|zygosity|pair)")


def family_columns(columns: Sequence[str], disjoint: Sequence[str], where: str) -> tuple[str, ...]:
    """The columns in which splits are disjoint: those of ``data.disjoint`` as the table has them.

    The default, ``family_id``, also means one column that is spelt otherwise (``Family_ID``,
    ``famid``). Whoever names other columns, or none, has decided.

    Raises:
        UserError: by default, if several columns could be it, or there is none and others tell of
            relatives.
    """
    if tuple(disjoint) != (FAMILY_KEY,) or FAMILY_KEY in columns:
        return tuple(disjoint)
    plain = {name: re.sub(r"[^a-z]", "", name.lower()) for name in columns}
    families = [name for name in columns if plain[name] in _FAMILY]
    if len(families) == 1:
        logger.info("%s: people of one %s stay together in every split", where, families[0])
        return (families[0],)
    related = families or [name for name in columns if _RELATIVES.match(plain[name])]
    if related:
        raise UserError(
            f"{where} has no column {FAMILY_KEY}, but {', '.join(related)}: relatives in training "
            "and test make scores too good. Name what relatives share: "
            f"data.disjoint=[{related[0]}], or say that no one is related: data.disjoint=[]."
        )
    return tuple(disjoint)
