"""Renders the formulas of docstrings: ``v_t = beta v_{t-1} + G_t`` as mathematics.

A docstring writes formulas as plain text in double backticks, to be read in `help()`. Here those
that are formulas, and not code, become LaTeX.
"""

import re
from typing import Any

GREEK = ("alpha", "beta", "gamma", "delta", "eta", "kappa", "lambda", "mu", "rho", "sigma", "tau")
SIGNS = {
    "<-": r"\leftarrow ",
    "->": r"\to ",
    "<=": r"\le ",
    ">=": r"\ge ",
    "!=": r"\ne ",
    "*": r"\,",
    "...": r"\dots ",
    "||": r"\|",
}
MARKS = re.compile(r"<-|\^|_[A-Za-z0-9{]| = |sqrt\(|\b(?:" + "|".join(GREEK) + r")\b")
CODE = re.compile(r"""["':\[\]@]|\w\.\w|[A-Za-z0-9]{2,}_[A-Za-z]{2,}|\w=\w|\bNone\b|\bself\b""")
TOKENS = re.compile(r"\\[a-z]+|<-|->|[<>!]=|\.\.\.|\*|\|\||[A-Za-z]{2,}")


def is_formula(text: str) -> bool:
    """Whether a text is a formula rather than code.

    Example:
        >>> [is_formula(text) for text in ("M_t = mu M_{t-1} + G_t", "weight_decay", "ema(0.95)")]
        [True, False, False]
    """
    return bool(MARKS.search(text)) and not CODE.search(text.replace("G'", "G"))


def latex(text: str) -> str:
    r"""A formula in LaTeX.

    Example:
        >>> print(latex("W <- W - eta M / sqrt(v_t)"))
        W \leftarrow W - \eta M / \sqrt{v_t}
        >>> print(latex("gain g^(1 - alpha) |O_t| mean(U^T)"))
        \mathrm{gain}\, g^{1 - \alpha } |O_t| \operatorname{mean}(U^\top)
    """
    for opening, closing in (("sqrt(", r"\sqrt{"), ("^(", "^{"), ("_(", "_{")):
        while opening in text:
            before, _, after = text.partition(opening)
            end = _closing(after)
            text = f"{before}{closing}{after[:end]}}}{after[end + 1 :]}"
    for pattern, replacement in (
        (r"\^T\b", r"^\\top"),
        (r"([\^_])\*", r"\1\\ast"),
        (r"\^(-?\d[\d.]*)", r"^{\1}"),
        (r"\bbeta(\d)", r"beta_\1"),
        (r"<(\w+), (\w+)>", r"\\langle \1, \2 \\rangle"),
    ):
        text = re.sub(pattern, replacement, text)
    return re.sub(r" +", " ", TOKENS.sub(_token, text)).strip()


def _token(match: re.Match[str]) -> str:
    """One sign, Greek letter or word in LaTeX; commands stay."""
    token, text = match[0], match.string
    if token.startswith("\\"):
        return token
    if token in GREEK:
        return f"\\{token} "
    if token in SIGNS:
        return SIGNS[token]
    before, after = text[: match.start()][-1:], text[match.end() :][:1]
    if after == "(" or token in ("max", "min"):
        return rf"\operatorname{{{token}}}"
    space = r"\,"  # words of a formula stand apart
    return rf"{space if before == ' ' else ''}\mathrm{{{token}}}{space if after == ' ' else ''}"


def _closing(text: str) -> int:
    """Where the parenthesis closes that was opened before the text."""
    depth = 1
    for i, letter in enumerate(text):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if depth == 0:
            return i
    raise ValueError(f"a parenthesis is not closed in the formula {text!r}")


def render_formulas(*event: object) -> None:
    """Replaces the formulas of a docstring: its lines come last in autodoc's event."""
    lines: Any = event[-1]
    text = re.sub(
        r"``([^`]+)``",
        lambda match: f":math:`{latex(match[1])}`" if is_formula(match[1]) else match[0],
        "\n".join(lines),
    )
    lines[:] = text.split("\n")
