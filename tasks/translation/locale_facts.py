"""Facts that every locale can write, from the Unicode CLDR by way of `babel`: dates, prices, measures, names.

A fact draws a value and knows several ways to write it in any locale.
"""

from collections.abc import Callable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any, NamedTuple

from babel import Locale
from babel.dates import (
    format_date,
    format_interval,
    format_skeleton,
    format_time,
    format_timedelta,
    get_day_names,
    get_month_names,
    get_time_format,
)
from babel.lists import format_list
from babel.numbers import (
    format_compact_currency,
    format_compact_decimal,
    format_currency,
    format_decimal,
    format_percent,
    get_currency_name,
    get_currency_precision,
)
from babel.units import format_compound_unit

Way = Callable[[Any, Locale], str]


class Fact(NamedTuple):
    """A kind of value and the ways to write it, from the plainest on."""

    draw: Callable[[Random], Any]
    ways: Sequence[Way]

    def write(self, value: Any, way: int, source: Locale, target: Locale) -> tuple[str, str]:
        """Write a value in two locales.

        Two ways may read the same: the long and the medium form of May 3, 2027 do in English, but not in German. The
        translation is then that of the first, or there would be two.
        """
        texts = [plain_blanks(write(value, source)) for write in self.ways[: way + 1]]
        return texts[way], plain_blanks(self.ways[texts.index(texts[way])](value, target))


def plain_blanks(text: str) -> str:
    """Put one plain blank for every run of blanks, be they no-break, thin or ideographic."""
    return " ".join(text.split())


# Values. A Decimal is normalized, for 1.50 and 1.5 are one value and belong into one part.


def _decimal(random: Random, digits: int, places: int = 0) -> Decimal:
    whole = random.randrange(1, 10 ** random.randint(1, digits))
    return (whole + Decimal(random.randrange(10**places)).scaleb(-places)).normalize()


def _number(random: Random) -> Decimal:
    return _decimal(random, 6, random.choice((0, 0, 1, 2, 3))) * random.choice((1, 1, 1, 1, -1))


def _few(random: Random) -> Decimal:  # 1 often enough to learn the singular.
    return random.choice((Decimal(1), _decimal(random, 1), _decimal(random, 3), _decimal(random, 3, 1)))


def _percent(random: Random) -> Decimal:
    return _decimal(random, 2, random.choice((0, 1, 2))).scaleb(-2)


def _millions(random: Random) -> Decimal:
    return (Decimal(random.randrange(10, 1000)) * 10 ** random.choice((5, 6, 8))).normalize()


def _price(random: Random) -> tuple[Decimal, str]:
    code = random.choice(CURRENCIES)
    return _decimal(random, 4, get_currency_precision(code)), code


def _day(random: Random) -> date:  # Of a hundred years, so that two digits tell the year.
    return date(1970, 1, 1) + timedelta(days=random.randrange(36_525))


def _days(random: Random) -> tuple[date, date]:
    start = _day(random)
    return start, start + timedelta(days=random.choice((random.randrange(1, 15), random.randrange(15, 500))))


def _minute(random: Random) -> time:
    return time(random.randrange(24), random.choice((0, 15, 30, 45, random.randrange(60))))


def _minutes(random: Random) -> tuple[time, ...]:
    return tuple(time(five // 12, five % 12 * 5) for five in sorted(random.sample(range(288), 2)))


def _seconds(random: Random) -> int:  # Whole units, too few to make the next one.
    unit, limit = random.choice(((1, 60), (60, 60), (3600, 24), (86400, 7), (604800, 5), (2592000, 12), (31536000, 90)))
    return unit * random.randrange(1, limit)


def _hours_and_minutes(random: Random) -> list[tuple[int, str]]:
    return [(random.randrange(1, 24), "duration-hour"), (random.randrange(1, 60), "duration-minute")]


# Ways of writing.


def _way(function: Callable[..., Any], **options: Any) -> Way:
    """Call a function of babel on a value, which is its first argument or a tuple of its first ones."""

    def write(value: Any, locale: Locale) -> str:
        return function(*(value if isinstance(value, tuple) else [value]), **options, locale=locale)

    return write


def _skeleton(skeleton: str) -> Way:
    return lambda value, locale: format_skeleton(_with_hour(skeleton, locale), value, locale=locale)


def _interval(skeleton: str) -> Way:
    return lambda ends, locale: format_interval(ends[0], ends[1], _with_hour(skeleton, locale), locale=locale)


def _with_hour(skeleton: str, locale: Locale) -> str:
    """Put the hour that the locale prefers, of 12 or of 24, for the j that stands for it in the CLDR."""
    return skeleton.replace("j", "H" if "H" in get_time_format("short", locale).pattern else "h")


def _measured(amount: Decimal, unit: str, length: str, locale: Locale) -> str:
    """Write a measure as `babel.units.format_unit` does, but with every plural.

    The CLDR leaves out a form that reads like the general one, and a long one that reads like the short one; babel
    does not look there and writes "1 Meilen".
    """
    patterns = locale._data["unit_patterns"][unit]  # pyright: ignore[reportPrivateUsage]
    forms = patterns[length if "other" in patterns.get(length, {}) else "short"]
    return forms.get(locale.plural_form(amount), forms["other"]).format(format_decimal(amount, locale=locale))


def _price_per(amount: Decimal, code: str, unit: str, length: Any, locale: Locale) -> str | None:
    price = format_currency(amount, code, locale=locale)
    return format_compound_unit(price, denominator_unit=unit, length=length, locale=locale)


def _listed(ways: Sequence[Way], *styles: Any) -> list[Way]:
    def each(way: Way, style: Any) -> Way:
        return lambda values, locale: format_list([way(value, locale) for value in values], style, locale)

    return [each(way, style) for way in ways for style in styles]


# Facts.


def _one(choices: Sequence[Any], *ways: Way) -> Fact:
    return Fact(lambda random: random.choice(choices), ways)


def _measure(units: str, *lengths: str) -> Fact:
    names = units.split()
    return Fact(
        lambda random: (_few(random), random.choice(names)), [_way(_measured, length=length) for length in lengths]
    )


def several(fact: Fact, most: int = 3) -> Fact:
    """Take from two to `most` different ones, joined by "and" or by "or"."""

    def draw(random: Random) -> list[Any]:
        count = random.randint(2, most)
        values = {}
        while len(values) < count:
            values[fact.draw(random)] = None
        return list(values)

    return Fact(draw, _listed(fact.ways, "standard", "or"))


CURRENCIES = "USD EUR GBP JPY CHF CAD AUD CNY INR BRL KRW SEK NOK DKK PLN CZK MXN TRY".split()
COUNTRIES = "AR AT AU BE BR CA CH CL CN DE DK EG ES FI FR GB GR IE IN IT JP KE KR MX NG NL NO PL PT SE TR UA US".split()
LANGUAGES = "ar cs da de el en es fa fi fr he hi hu it ja ko nl no pl pt ro ru sv sw th tr uk vi zh".split()
LENGTHS = "length-kilometer length-meter length-centimeter length-millimeter length-mile length-foot length-inch"
MASSES = "mass-tonne mass-kilogram mass-gram mass-milligram mass-pound mass-ounce"
TEMPERATURES = "temperature-celsius temperature-fahrenheit"
SPANS = "duration-second duration-minute duration-hour duration-day duration-week duration-month duration-year"
SPEEDS = "speed-kilometer-per-hour speed-mile-per-hour speed-meter-per-second speed-knot"
OTHERS = "volume-liter volume-milliliter volume-gallon energy-kilowatt-hour power-watt electric-volt digital-gigabyte"

DATE = Fact(
    _day, [*(_way(format_date, format=width) for width in ("long", "medium", "short", "full")), _skeleton("yMMMEd")]
)
BARE_DATE = Fact(_day, DATE.ways[:3])
LONG_DATE = Fact(_day, DATE.ways[:1])
DAY_OF_YEAR = Fact(lambda random: _day(random).replace(year=2000), [_skeleton("MMMMd"), _skeleton("MMMd")])
MONTH = Fact(lambda random: _day(random).replace(day=1), [_skeleton("yMMMM"), _skeleton("yMMM"), _skeleton("yM")])
QUARTER = Fact(
    lambda random: date(random.randrange(1970, 2070), random.choice((1, 4, 7, 10)), 1),
    [_skeleton("yQQQQ"), _skeleton("yQQQ")],
)
DAYS = Fact(_days, [_interval("yMMMd"), _interval("yMd"), _interval("yMMMEd")])
WEEKDAY = _one(range(7), lambda value, locale: get_day_names("wide", "format", locale)[value])
MONTH_NAME = _one(range(1, 13), lambda value, locale: get_month_names("wide", "stand-alone", locale)[value])
CLOCK = Fact(_minute, [_way(format_time, format="short")])
TIME = Fact(_minute, [*CLOCK.ways, _skeleton("Bhm")])
TIMES = Fact(_minutes, [_interval("jm")])
WEEKDAY_TIME = Fact(
    lambda random: datetime.combine(date(2024, 1, random.randint(1, 7)), _minute(random)),
    [_skeleton("Ejm"), _skeleton("EBhm")],
)
FUTURE = Fact(
    _seconds, [_way(format_timedelta, threshold=1, add_direction=True, format=width) for width in ("long", "short")]
)
PAST = Fact(lambda random: -_seconds(random), FUTURE.ways)
DURATION = Fact(_hours_and_minutes, _listed([_way(_measured, length="long")], "standard"))
NUMBER = Fact(_number, [_way(format_decimal)])
COUNT = Fact(lambda random: random.randrange(2, 10 ** random.randint(3, 7)), NUMBER.ways)
PERCENT = Fact(_percent, [_way(format_percent, decimal_quantization=False)])
MILLIONS = Fact(_millions, [_way(format_compact_decimal, format_type="long", fraction_digits=3)])
PRICE = Fact(_price, [_way(format_currency)])
MONEY = Fact(_price, [*PRICE.ways, _way(format_currency, format_type="name")])
MILLIONS_OF_MONEY = Fact(
    lambda random: (_millions(random), random.choice(CURRENCIES)), [_way(format_compact_currency, fraction_digits=3)]
)
RATE = Fact(
    lambda random: (*_price(random), random.choice(("kilogram", "liter", "meter", "hour"))),
    [_way(_price_per, length="long"), _way(_price_per, length="short")],
)
CURRENCY = _one(CURRENCIES, _way(get_currency_name))
COUNTRY = _one(COUNTRIES, lambda code, locale: locale.territories[code])
LANGUAGE = _one(LANGUAGES, lambda code, locale: locale.languages[code])
LENGTH = _measure(LENGTHS, "long", "short")
MASS = _measure(MASSES, "long", "short")
AREA = _measure("area-square-kilometer area-square-meter area-square-mile area-hectare", "long")
TEMPERATURE = _measure(TEMPERATURES, "long", "short")
MEASURE = _measure(f"{LENGTHS} {MASSES} {TEMPERATURES} {SPANS} {SPEEDS} {OTHERS}", "long", "short")
