"""What a pool may hold to break a page: each of these is shown as text, and nothing else comes of it."""

from __future__ import annotations

MARKUP = (
    "<script>document.title='hacked'</script>",
    "<img src=x onerror=\"document.title='hacked'\">",
    "<a href='javascript:alert(1)'>x</a>",
    "</td></table></main><iframe src=//evil.invalid></iframe>",
    '" onmouseover="alert(1)" \'',
    "{{ record.config }}{% raw %}",
    "<!-- --></style><style>*{display:none !important}</style>",
    "<svg/onload=alert(1)>",
    "&lt;b&gt; &#x3c;script&#x3e;",
    "$\\frac{1}{$ and $$ and %s",
)
UNSEEN = ("\u202e", "\u2066", "\x1b[31m", "\x00", "\ufeff")
"""Marks that turn the direction of writing, terminal escapes, characters of no width."""
