"""Our 71 prompts: short and long, plain and awkward, so that a run meets what people type."""

from __future__ import annotations

from itertools import product

SUBJECTS = (
    "a lighthouse",
    "an old bicycle leaning on a wall",
    "two herons in shallow water",
    "a market stall with oranges",
    "a wooden chair in an empty room",
    "a mountain hut under snow",
    "a violin maker at work",
    "a night train in a station",
    "a fox between birches",
    "a glass of water on a stone",
    "a harbour with small boats",
    "an owl on a fence post",
    "a greenhouse full of ferns",
)

MANNERS = (
    "at dusk",
    "in morning fog, black and white, 35 mm",
    "as a woodcut in two colours",
    "in watercolour, with much white paper left",
    "from above, hard shadows at noon",
)

AWKWARD = (
    "x",
    "ein Bäcker öffnet früh um fünf den Laden",
    "灯台と夕焼け",
    "منارة عند الغروب",
    "🌅🗼",
    'a sign that says "open" & <closed>',
)
"""One letter, other alphabets, characters outside the basic plane, and what a careless page would take for markup."""

PROMPTS = (*(f"{subject} {manner}" for subject, manner in product(SUBJECTS, MANNERS)), *AWKWARD)
"""71 of them."""
