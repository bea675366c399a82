"""Tells a user what a run that goes on should not hide, and shows texts of files safely in a terminal."""

import os
import sys
import unicodedata

# Categories of characters that a terminal or a page acts on: controls, formats (such as those that reverse the
# direction of reading), halves of a pair, and ends of lines. Formats that scripts and emoji need are kept.
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_KEPT = frozenset("\n\t\u200c\u200d")


def printable(text: str) -> str:
    """A text with every character that a terminal would act on, such as an escape, as its code: `"\\x1b"`."""
    return "".join(
        char
        if char in _KEPT or unicodedata.category(char) not in _ACTING
        else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def say(text: object, error: bool = False) -> None:
    """
    Prints what may come from a file, on the standard or the error output. Everything that is printed goes this way.
    """
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def notice(message: str) -> None:
    """Prints one line on the error output, from the main process of a run only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(printable(f"note: {' '.join(message.split())}"), file=sys.stderr, flush=True)


def listed(names, most: int = 10) -> str:
    """Names as a sentence has them: all of a few, and of many the first ones and how many follow."""
    names = [str(name) for name in names]
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"
