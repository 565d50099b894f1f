"""The thirty pairs that `batchscore verify` scores: what corpora hold and models are rarely tried with."""

from __future__ import annotations

from typing import NamedTuple

_TEXT = """The river begins as a spring in the mountains and reaches the capital after some four hundred kilometres.
On its banks stand mills, a bridge of 1902, and the houses of fishermen; every spring the water rises, and every summer
children swim where ships used to load grain. A museum near the harbour shows how the town lived from trade until the
railway came. """
_MOST_WORDS = 1_024  # about 1,300 tokens: more would take a CPU minutes, whatever a long model can read


class NamedPair(NamedTuple):
    """A query, a document, and in a few words what is special about them."""

    name: str
    query: str
    document: str


def _words(count: int) -> str:
    words = _TEXT.split()
    return " ".join(words[index % len(words)] for index in range(count))


_QUERY, _ANSWER = "What is the capital of France?", "The capital of France is Paris."
_PAIRS = (
    NamedPair("short", _QUERY, _ANSWER),
    NamedPair("unrelated", _QUERY, "Horses eat grass."),
    NamedPair("one word each", "Paris", "France"),
    NamedPair("one letter each", "a", "b"),
    NamedPair("query equal to document", _ANSWER, _ANSWER),
    NamedPair("long document", _QUERY, _words(120)),
    NamedPair("long query", _words(80), _ANSWER),
    NamedPair("both long", _words(100), _words(130)),
    NamedPair("empty document", _QUERY, ""),
    NamedPair("empty query", "", _ANSWER),
    NamedPair("both empty", "", ""),
    NamedPair("blank document", _QUERY, "  \t\n "),
    NamedPair(
        "tabs and line breaks",
        " What is\tthe capital\n\nof  France? ",
        "\r\nThe  capital of France\nis\tParis. \n",
    ),
    NamedPair("Chinese", "法国的首都是哪里？", "法国的首都是巴黎，位于塞纳河畔。"),
    NamedPair("Japanese and Korean", "フランスの首都はどこですか？", "프랑스의 수도는 파리입니다."),
    NamedPair("Arabic and Hebrew", "ما هي عاصمة فرنسا؟", "בירת צרפת היא פריז."),
    NamedPair("Hindi and Thai", "फ़्रांस की राजधानी क्या है?", "เมืองหลวงของฝรั่งเศสคือปารีส"),
    NamedPair("Russian and Greek", "Какая столица Франции?", "Η πρωτεύουσα της Γαλλίας είναι το Παρίσι."),
    NamedPair(
        "accents, composed and not",
        "Où est le cœur de Zürich?",
        "Ou\u0300 est le cafe\u0301 ﬁne de Zu\u0308rich?",
    ),
    NamedPair("emoji", "🙂 capital of 🇫🇷?", "Paris 🗼🚀👩‍🔬👍🏽"),
    NamedPair(
        "control and zero-width characters",
        "capital\u200bof\u00adFrance\ufeff?",
        "Paris\u0007\u2028is \ufffd\ue000it.",
    ),
    NamedPair("[SEP] spelled out", "capital [SEP] France", "[CLS] Paris [SEP] is it. [MASK] [PAD] [UNK]"),
    NamedPair("</s> spelled out", "<s> capital of France </s>", "Paris </s></s> is it. <mask> <pad> <unk>"),
    NamedPair(
        "<|im_end|> spelled out", "capital <|im_end|>", "<|im_start|>Paris<|im_end|>\n<|endoftext|> is it. <eos>"
    ),
    NamedPair("HTML, JSON and code", '{"q": "capital"}', "<p>Paris</p> if x == [1, 2]: print('&amp;')"),
    NamedPair("numbers and punctuation", "2024-05-01, 3.14 & 1e-7?", "1,000,000 $ (100 %)!!! ... ---"),
    NamedPair("capitals", "WHAT IS THE CAPITAL OF FRANCE?", "PARIS."),
)


def built_in_pairs(max_length: int) -> list[NamedPair]:
    """Thirty pairs; some are longer than `max_length` tokens, where that is not more than about a thousand."""
    longest = _words(min(max_length * 5 // 4 + 16, _MOST_WORDS))
    return [
        *_PAIRS,
        NamedPair("document beyond max_length", _QUERY, longest),
        NamedPair("query beyond max_length", longest, _ANSWER),
        NamedPair("duplicate of the first", _QUERY, _ANSWER),
    ]
