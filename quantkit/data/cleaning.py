"""Cleaning of tweets, as the studies of Indonesian tweets did it."""

import re

from quantkit.source import Cleaning

__all__ = ["STOP_WORDS", "clean"]

# Before a number RT is no retweet but a neighbourhood: "RT 05 RW 02".
RETWEET = re.compile(r"^\s*RT\b[\s:]++(?!\d)")
URL = re.compile(r"(?:https?://|www\.)\S+", re.IGNORECASE)
USER = re.compile(r"@\w+:?")
HASHTAG = re.compile(r"#\w+")

# Words without a meaning of their own. Negations (tidak, bukan, belum, jangan, kurang) are
# not among them: without them a text says the opposite.
STOP_WORDS = frozenset(
    """
    ada adalah agar akan aku anda apa atas atau bagi bahwa beberapa begitu berbagai bila bisa
    dalam dan dapat dari daripada dengan demi di dia hal harus hingga ia ialah ini itu jadi jika
    juga kalau kami kamu karena ke kepada ketika kita lagi lah lain maka makin masih mereka
    merupakan misalnya nya oleh pada para per pula pun saat saja sambil sampai sang saya se
    sebab sebagai sebelum sebuah secara sedang sehingga sejak sekitar selain selama seluruh
    semua seorang seperti serta sesuatu setelah setiap si suatu supaya tadi telah tentang tentu
    terhadap tersebut tiap untuk yaitu yakni yang
    """.split()  # noqa: SIM905
)


def clean(text: str, cleaning: Cleaning) -> str:
    """The text without what `cleaning` removes; it may be empty afterwards."""
    removals = (
        (cleaning.retweets, RETWEET),
        (cleaning.urls, URL),
        (cleaning.users, USER),
        (cleaning.hashtags, HASHTAG),
    )
    for wanted, pattern in removals:
        if wanted:
            # A space, so that what stood on both sides does not grow together.
            text = pattern.sub(" ", text)
    if cleaning.lower:
        text = text.lower()
    if cleaning.stop_words:
        text = " ".join(word for word in text.split() if word.lower() not in STOP_WORDS)
    return " ".join(text.split()) if cleaning.spaces else text
