from collections import defaultdict
from datetime import date, time, timedelta
from decimal import Decimal

import pytest
from babel import Locale
from babel.dates import format_date, format_time
from babel.numbers import format_currency
from sentencepiece import SentencePieceNormalizer

from tasks.errors import InputError
from tasks.translation import locale_facts as facts
from tasks.translation.locale_corpus import SENTENCES, locale_pairs

EN, DE = Locale.parse("en"), Locale.parse("de")
PARTS = ("train", "valid", "test")
LOCALES = [("en", "de"), ("de", "en"), ("fr", "es"), ("en", "ja"), ("pt_BR", "zh_Hant")]

# Written by hand after the charts of the CLDR: fact, value, way, English, German.
KNOWN = [
    (facts.DATE, date(2027, 3, 3), 0, "March 3, 2027", "3. März 2027"),
    (facts.DATE, date(2027, 3, 3), 1, "Mar 3, 2027", "03.03.2027"),
    (facts.DATE, date(2027, 3, 3), 2, "3/3/27", "03.03.27"),
    (facts.DATE, date(2027, 3, 3), 3, "Wednesday, March 3, 2027", "Mittwoch, 3. März 2027"),
    (facts.TIME, time(16, 30), 0, "4:30 PM", "16:30"),
    (facts.NUMBER, Decimal("1234.5"), 0, "1,234.5", "1.234,5"),
    (facts.PERCENT, Decimal("0.125"), 0, "12.5%", "12,5 %"),
    (facts.MILLIONS, Decimal(5_000_000), 0, "5 million", "5 Millionen"),
    (facts.MONEY, (Decimal("1234.5"), "EUR"), 0, "€1,234.50", "1.234,50 €"),
    (facts.MONEY, (Decimal("1234.5"), "USD"), 1, "1,234.50 US dollars", "1.234,50 US-Dollar"),
    (facts.LENGTH, (Decimal(1), "length-mile"), 0, "1 mile", "1 Meile"),
    (facts.LENGTH, (Decimal(2), "length-mile"), 0, "2 miles", "2 Meilen"),
    (facts.LENGTH, (Decimal(1), "length-kilometer"), 1, "1 km", "1 km"),
    (facts.FUTURE, 3 * 86400, 0, "in 3 days", "in 3 Tagen"),
    (facts.PAST, -86400, 0, "1 day ago", "vor 1 Tag"),
    (
        facts.several(facts.COUNTRY),
        ["DE", "FR", "JP"],
        0,
        "Germany, France, and Japan",
        "Deutschland, Frankreich und Japan",
    ),
    (facts.several(facts.LANGUAGE), ["de", "fr"], 1, "German or French", "Deutsch oder Französisch"),
]


@pytest.mark.parametrize(("fact", "value", "way", "english", "german"), KNOWN)
def test_facts_are_written_as_the_cldr_has_them(fact, value, way, english, german):
    assert fact.write(value, way, EN, DE) == (english, german)


def test_facts_are_written_as_babel_writes_them_but_for_blanks():
    fr, ja = Locale.parse("fr"), Locale.parse("ja")
    day, moment, price = date(2031, 7, 11), time(9, 5), (Decimal("1234.5"), "EUR")
    blanks = str.maketrans("\u00a0\u202f\u2009", "   ")
    assert facts.DATE.write(day, 3, fr, ja) == (format_date(day, "full", "fr"), format_date(day, "full", "ja"))
    assert facts.CLOCK.write(moment, 0, EN, ja) == (
        format_time(moment, "short", locale="en").translate(blanks),
        format_time(moment, "short", locale="ja"),
    )
    assert facts.PRICE.write(price, 0, fr, ja)[0] == format_currency(*price, locale="fr").translate(blanks)


def test_two_ways_that_read_the_same_have_the_translation_of_the_first():
    may = date(2027, 5, 3)
    assert facts.DATE.write(may, 0, EN, DE) == facts.DATE.write(may, 1, EN, DE) == ("May 3, 2027", "3. Mai 2027")


def test_a_meeting_can_be_announced():
    meeting = next(s for s in SENTENCES if isinstance(s.join, dict) and s.join["en"].startswith("The meeting"))
    assert meeting.write([date(2027, 3, 3), time(16, 30)], [0, 0], EN, DE) == (
        "The meeting is on March 3, 2027 at 4:30 PM.",
        "Das Treffen ist am 3. März 2027 um 16:30 Uhr.",
    )


@pytest.mark.parametrize("locales", LOCALES)
def test_parts_are_disjoint_and_a_source_has_one_target(locales):
    targets, parts = defaultdict(set), defaultdict(set)
    for part in PARTS:
        for seed, size in ((1, 1500), (2, 700)):
            pairs = locale_pairs(*locales, part, size, seed)
            assert len({source for source, _ in pairs}) == size
            for source, target in pairs:
                parts[source].add(part)
                targets[source].add(target)
    assert {len(found) for found in parts.values()} == {1}
    assert {len(found) for found in targets.values()} == {1}


@pytest.mark.parametrize("locale", [EN, DE])
@pytest.mark.parametrize(
    ("fact", "values"),
    [
        (facts.BARE_DATE, [date(1970, 1, 1) + timedelta(days=days) for days in range(0, 36_525, 5)]),
        (facts.TIME, [time(minute // 60, minute % 60) for minute in range(1440)]),
        (facts.FUTURE, [86400 * days for days in range(1, 7)] + [3600 * hours for hours in range(1, 24)]),
        (facts.MONTH, [date(year, month, 1) for year in range(1970, 2070) for month in range(1, 13)]),
        (facts.CURRENCY, facts.CURRENCIES),
        (facts.COUNTRY, facts.COUNTRIES),
        (facts.LANGUAGE, facts.LANGUAGES),
        (facts.MEASURE, [(Decimal(2), unit) for unit in f"{facts.LENGTHS} {facts.SPANS} {facts.OTHERS}".split()]),
        (facts.PRICE, [(Decimal(2), code) for code in facts.CURRENCIES]),
    ],
)
def test_no_two_values_read_the_same(fact, values, locale):
    texts = [{fact.write(value, way, locale, locale)[0] for way in range(len(fact.ways))} for value in values]
    assert len(set.union(*texts)) == sum(map(len, texts))


def test_the_list_depends_on_the_arguments_alone_and_a_longer_one_begins_with_the_shorter():
    short = locale_pairs("en", "de", "train", 300)
    assert locale_pairs("en", "de", "train", 500)[:300] == short
    assert locale_pairs("en", "de", "train", 300, seed=2) != short
    assert locale_pairs("en", "de", "train", 0) == []


def test_every_carrier_and_every_fact_occurs():
    sources = " ".join(source for source, _ in locale_pairs("en", "de", "train", 3000))
    wanted = (
        "The meeting",
        "museum",
        "She speaks",
        "2027",
        "million",
        "kilometer",
        "€",
        "%",
        "Japan",
        "Wednesday",
        "quarter",
    )
    assert [word for word in wanted if word not in sources] == []


def test_carriers_stay_out_where_a_language_has_none():
    assert any("The meeting" in source for source, _ in locale_pairs("en_GB", "de_AT", "train", 500))
    assert not any("The meeting" in source for source, _ in locale_pairs("en", "it", "train", 500))


@pytest.mark.parametrize("locales", [("en", "de"), ("fr", "da")])
def test_the_usual_normalization_of_a_tokenizer_changes_nothing(locales):
    normalizer = SentencePieceNormalizer(rule_name="nmt_nfkc", add_dummy_prefix=False, escape_whitespaces=False)
    texts = [text for pair in locale_pairs(*locales, "train", 2000) for text in pair]
    assert [text for text in texts if normalizer.normalize(text) != text] == []


def test_locales_may_be_spelled_with_a_hyphen():
    assert locale_pairs("en-GB", "DE-at", "test", 30) == locale_pairs("en_GB", "de_AT", "test", 30)


@pytest.mark.parametrize(("name", "near"), [("ger", "ger|de|gez"), ("en_UK", "en_"), ("zh_TW", "zh_Hant_TW"), ("", "")])
def test_an_unknown_locale_is_named_with_the_nearest_known_ones(name, near):
    with pytest.raises(InputError, match=f"^Locale '{name}' .*: try .*({near}).*$"):
        locale_pairs("en", name, "train", 1)
