"""Summarization: its trivial floor."""

from hftune.tasks import summarize


def test_the_baseline_is_the_name_that_code_defines_or_the_first_sentence():
    documents = {
        "def _get_HTTPHeader2(self):\n    return 1": "get HTTP Header 2",
        "async def close_all():\n    pass": "close all",
        "class URLOpener:\n    pass": "URL Opener",
        "Defeat came early. It rained.": "Defeat came early.",
        "\n \nfirst line\nsecond": "first line",
        "": "",
    }
    found = summarize.baseline([], [{"document": text} for text in documents], summarize.SummarizeOptions())
    assert found == list(documents.values())
