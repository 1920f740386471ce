"""The editor in other languages: complete, and what the one table says."""
import json

import pytest

from harness import locales


@pytest.fixture(scope="module")
def nodes(host):
    return locales.schemas(host)


@pytest.mark.parametrize("language", locales.LANGUAGES)
def test_every_text_has_its_translation(nodes, language):
    lacking = locales.missing(nodes, locales.read_table(), language)
    assert not lacking, f"run.py locales --missing {language}: {lacking[:5]}"


@pytest.mark.parametrize("language", ("en", *locales.LANGUAGES))
def test_the_files_are_made_of_the_table(nodes, language):
    for name, content in locales.files(nodes, locales.read_table(), language).items():
        kept = json.loads((locales.FOLDER / language / name).read_text(encoding="utf-8"))
        assert kept == content, f"run: python run.py locales ({language}/{name})"


def test_translations_keep_what_is_not_words(nodes):
    """Names in backquotes are widget values and stay as they are."""
    for english, row in locales.read_table().items():
        for part in english.split("`")[1::2]:
            assert all(part in text for text in row.values() if text), (english, part)


def test_no_text_holds_a_sign_of_the_message_format():
    """The frontend would take {word} for a variable, @ for a link and | for a plural."""
    for english, row in locales.read_table().items():
        assert not set("{}@|") & set(english + "".join(filter(None, row.values()))), english
