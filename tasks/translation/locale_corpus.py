"""A parallel corpus from no file: sentences of dates, prices, measures, names and the like in two locales.

A sentence is a carrier around one to three facts; the same values written the same way in both locales are a pair.
All wording comes from the Unicode CLDR through `babel`, except for the carriers at the end of the file, which join in
where both languages have them.
"""

import difflib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from babel import Locale, localedata
from babel.dates import get_datetime_format

from tasks.errors import InputError
from tasks.task import Split
from tasks.translation.locale_facts import (
    AREA,
    BARE_DATE,
    CLOCK,
    COUNT,
    COUNTRY,
    CURRENCY,
    DATE,
    DAY_OF_YEAR,
    DAYS,
    DURATION,
    FUTURE,
    LANGUAGE,
    LENGTH,
    LONG_DATE,
    MASS,
    MEASURE,
    MILLIONS,
    MILLIONS_OF_MONEY,
    MONEY,
    MONTH,
    MONTH_NAME,
    NUMBER,
    PAST,
    PERCENT,
    PRICE,
    QUARTER,
    RATE,
    TEMPERATURE,
    TIME,
    TIMES,
    WEEKDAY,
    WEEKDAY_TIME,
    Fact,
    plain_blanks,
    several,
)

# What babel raises where the CLDR has no such name or pattern for a locale, or babel does not support a field of it.
CANNOT_WRITE = (LookupError, ValueError, NotImplementedError)


def locale_pairs(source: str, target: str, split: Split, size: int, seed: int = 1) -> list[tuple[str, str]]:
    """Write `size` different sentences of a part in two locales, such as "en" and "de" or "fr_CA" and "ja".

    The list depends on nothing but the arguments and the version of babel; a longer one begins with the shorter one.
    A hash of the values of a sentence decides which part it belongs to: no part says in other words what another
    says (but a few small languages of the CLDR write two values alike). A source sentence has one translation. Every
    blank is a plain one, also where the CLDR has no-break and thin ones. Raises InputError for an unknown locale.
    """
    locales = _locale(source), _locale(target)
    sentences = [sentence for sentence in SENTENCES if sentence.has(*locales)]
    random = Random(f"{seed}-{split}")
    pairs: dict[str, str] = {}
    while len(pairs) < size:
        sentence = random.choice(sentences)
        values = [fact.draw(random) for fact in sentence.facts]
        ways = [random.randrange(len(fact.ways)) for fact in sentence.facts]
        if _part(values) != split:
            continue
        try:
            pair = sentence.write(values, ways, *locales)
        except CANNOT_WRITE:
            continue
        pairs.setdefault(*pair)
    return list(pairs.items())


class Sentence(NamedTuple):
    """Facts and how to join them: a carrier for each language, or a rule for all of them."""

    facts: Sequence[Fact]
    join: Mapping[str, str] | Callable[[Sequence[str], Locale], str]

    def has(self, *locales: Locale) -> bool:
        """Say whether all these locales can write it."""
        return callable(self.join) or all(locale.language in self.join for locale in locales)

    def write(self, values: Sequence[Any], ways: Sequence[int], source: Locale, target: Locale) -> tuple[str, str]:
        """Write the values in two locales."""
        written = [
            fact.write(value, way, source, target) for fact, value, way in zip(self.facts, values, ways, strict=True)
        ]
        sources, targets = zip(*written, strict=True)
        return self._joined(sources, source), self._joined(targets, target)

    def _joined(self, texts: Sequence[str], locale: Locale) -> str:
        if callable(self.join):
            return plain_blanks(self.join(texts, locale))
        return self.join[locale.language].format(*texts)


def _locale(name: str) -> Locale:
    known = localedata.locale_identifiers()
    identifier = localedata.normalize_locale(name.replace("-", "_"))
    if identifier is None:
        near = difflib.get_close_matches(name.replace("-", "_"), known, cutoff=0)
        raise InputError(f"Locale {name!r} is not one of the {len(known)} of the CLDR: try {', '.join(near)}.")
    return Locale.parse(identifier)


def _part(values: Sequence[Any]) -> Split:
    share = int.from_bytes(hashlib.sha256(repr(values).encode()).digest()) % 20
    return "valid" if share == 0 else "test" if share == 1 else "train"


def _alone(texts: Sequence[str], locale: Locale) -> str:
    return texts[0]


def _date_and_time(texts: Sequence[str], locale: Locale) -> str:
    pattern = str(get_datetime_format("medium", locale)).replace("'", "")
    return pattern.replace("{1}", texts[0]).replace("{0}", texts[1])


ALONE = (
    *(DATE, DAY_OF_YEAR, MONTH, QUARTER, DAYS, TIME, TIMES, WEEKDAY_TIME, FUTURE, PAST, DURATION),
    *(NUMBER, PERCENT, MILLIONS, MONEY, MILLIONS_OF_MONEY, RATE, MEASURE, AREA),
    *(several(name, most=4) for name in (WEEKDAY, MONTH_NAME, CURRENCY, COUNTRY, LANGUAGE)),
    *map(several, (LONG_DATE, PRICE, PERCENT, MEASURE, MASS)),
)

# Carriers have to be correct around every value in every language. German cases are the reason that no name of a
# currency stands in them, Spanish articles ("a la 1:30") the reason for the brackets.
CARRIED = (
    *([BARE_DATE, CLOCK], [LONG_DATE, LONG_DATE], [WEEKDAY, CLOCK, CLOCK], [FUTURE, CLOCK], [PAST, BARE_DATE]),
    *([DURATION, LENGTH], [PRICE, PRICE], [MASS, PRICE], [PERCENT, PERCENT], [COUNT, AREA], [CLOCK, TEMPERATURE]),
    [several(LANGUAGE)],
)
CARRIERS = {
    "en": (
        "The meeting is on {0} at {1}.",
        "The course was moved from {0} to {1}.",
        "On {0} the museum is open from {1} to {2}.",
        "The train leaves {0}, at {1}.",
        "The parcel arrived {0}, on {1}.",
        "The trip takes {0} and covers {1}.",
        "The ticket costs {0} instead of {1}.",
        "The box weighs {0} and costs {1}.",
        "The share changed from {0} to {1}.",
        "The city has {0} inhabitants and covers {1}.",
        "At {0} the temperature was {1}.",
        "She speaks {0}.",
    ),
    "de": (
        "Das Treffen ist am {0} um {1} Uhr.",
        "Der Kurs wurde vom {0} auf den {1} verschoben.",
        "Am {0} ist das Museum von {1} bis {2} Uhr geöffnet.",
        "Der Zug fährt {0} ab, um {1} Uhr.",
        "Das Paket kam {0} an, am {1}.",
        "Die Fahrt dauert {0} und führt über {1}.",
        "Die Karte kostet {0} statt {1}.",
        "Die Kiste wiegt {0} und kostet {1}.",
        "Der Anteil änderte sich von {0} auf {1}.",
        "Die Stadt hat {0} Einwohner und umfasst {1}.",
        "Um {0} Uhr betrug die Temperatur {1}.",
        "Sie spricht {0}.",
    ),
    "fr": (
        "La réunion est le {0} à {1}.",
        "Le cours a été déplacé du {0} au {1}.",
        "Le {0}, le musée est ouvert de {1} à {2}.",
        "Le train part {0}, à {1}.",
        "Le colis est arrivé {0}, le {1}.",
        "Le trajet dure {0} et couvre {1}.",
        "Le billet coûte {0} au lieu de {1}.",
        "La caisse pèse {0} et coûte {1}.",
        "La part est passée de {0} à {1}.",
        "La ville compte {0} habitants et couvre {1}.",
        "À {0}, la température était de {1}.",
        "Elle parle {0}.",
    ),
    "es": (
        "El {0} ({1}) hay una reunión.",
        "El curso se cambió del {0} al {1}.",
        "El {0} el museo abre de {1} a {2}.",
        "El tren sale {0} ({1}).",
        "El paquete llegó {0}, el {1}.",
        "El viaje dura {0} y cubre {1}.",
        "El billete cuesta {0} en lugar de {1}.",
        "La caja pesa {0} y cuesta {1}.",
        "La proporción pasó de {0} a {1}.",
        "La ciudad tiene {0} habitantes y cubre {1}.",
        "La temperatura ({0}) era de {1}.",
        "Habla {0}.",
    ),
}

SENTENCES = (
    *(Sentence([fact], _alone) for fact in ALONE),
    *(Sentence(facts, _date_and_time) for facts in ([DATE, TIME], [DATE, TIMES], [FUTURE, CLOCK])),
    *(
        Sentence(facts, dict(zip(CARRIERS, texts, strict=True)))
        for facts, *texts in zip(CARRIED, *CARRIERS.values(), strict=True)
    ),
)
