"""The wording of the word problems, written natively in each language. Data only; `word.py` gives it numbers.

A template is: ranges of its numbers; steps (operation, left, right), where r0, r1 name earlier results; and its text.
`{name}` and `{friend}` are people, `{he}` and `{He}` the pronoun of `name`, `{noun}` things, `{unit}` the Chinese
measure word. French names and nouns begin with a consonant, so that "de" is never elided.
"""
# ruff: noqa: E501  (a sentence stays on one line, to be read beside its translations)

from typing import NamedTuple

Steps = tuple[tuple[str, str, str], ...]


class Template(NamedTuple):
    """One kind of story."""

    name: str
    ranges: dict[str, tuple[int, int]]
    steps: Steps
    texts: dict[str, str]


NAMES = {
    "en": (("Anna", "she"), ("Tom", "he"), ("Mia", "she"), ("Ben", "he"), ("Lucy", "she"), ("Sam", "he")),
    "fr": (("Manon", "elle"), ("Paul", "il"), ("Chloé", "elle"), ("Karim", "il"), ("Zoé", "elle"), ("Louis", "il")),
    "zh": (("小红", "她"), ("小明", "他"), ("丽丽", "她"), ("小刚", "他"), ("王芳", "她"), ("李华", "他")),
}
NOUNS = {
    "en": (
        ("marbles", ""),
        ("stamps", ""),
        ("cards", ""),
        ("pencils", ""),
        ("apples", ""),
        ("shells", ""),
        ("beads", ""),
    ),
    "fr": (("billes", ""), ("timbres", ""), ("cartes", ""), ("crayons", ""), ("pommes", ""), ("coquillages", "")),
    "zh": (("弹珠", "颗"), ("邮票", "张"), ("卡片", "张"), ("铅笔", "支"), ("苹果", "个"), ("贝壳", "个")),
}

START = {
    "en": "{name} has {a} {noun}.",
    "fr": "{name} a {a} {noun}.",
    "zh": "{name}有{a}{unit}{noun}，",
}
QUESTION = {
    "en": "How many {noun} does {name} have now?",
    "fr": "Combien de {noun} {name} a-t-{he} maintenant ?",
    "zh": "{name}现在有多少{unit}{noun}？",
}
EVENTS = {
    "plus": {
        "en": ("{He} buys {n} more.", "{He} finds {n} more."),
        "fr": ("{He} en achète encore {n}.", "{He} en trouve {n} de plus."),
        "zh": ("又买了{n}{unit}，", "又找到{n}{unit}，"),
    },
    "minus": {
        "en": ("{He} gives {n} to {friend}.", "{He} loses {n}."),
        "fr": ("{He} en donne {n} à {friend}.", "{He} en perd {n}."),
        "zh": ("送给{friend}{n}{unit}，", "弄丢了{n}{unit}，"),
    },
    "packs": {
        "en": ("{He} gets {n} bags of {m}.", "{He} buys {n} boxes of {m}."),
        "fr": ("{He} reçoit {n} sachets de {m}.", "{He} achète {n} boîtes de {m}."),
        "zh": ("又得到{n}袋，每袋{m}{unit}，", "又买了{n}盒，每盒{m}{unit}，"),
    },
}
"""What may happen in a story of one person; `n`, and `m` per pack."""

TEMPLATES = (
    Template(
        "shop",
        {"n": (2, 9), "p": (2, 30), "q": (5, 60)},
        (("*", "n", "p"), ("+", "r0", "q")),
        {
            "en": "A pen costs {p} euros and a bag {q} euros. {name} buys {n} pens and one bag. How many euros is that?",
            "fr": "Un stylo coûte {p} euros et un sac {q} euros. {name} achète {n} stylos et un sac. Combien d'euros en tout ?",
            "zh": "一支钢笔{p}元，一个书包{q}元。{name}买了{n}支钢笔和一个书包，一共多少元？",
        },
    ),
    Template(
        "change",
        {"n": (2, 9), "p": (2, 20), "m": (20, 99)},
        (("*", "n", "p"), ("-", "m", "r0")),
        {
            "en": "{name} buys {n} notebooks at {p} euros each and pays with {m} euros. How much change does {he} get?",
            "fr": "{name} achète {n} cahiers à {p} euros pièce et donne {m} euros. Combien lui rend-on ?",
            "zh": "{name}买了{n}本练习本，每本{p}元，付了{m}元，应找回多少元？",
        },
    ),
    Template(
        "rows",
        {"r": (2, 9), "s": (5, 30), "t": (2, 99)},
        (("*", "r", "s"), ("-", "r0", "t")),
        {
            "en": "A hall has {r} rows of {s} seats. {t} seats are taken. How many are free?",
            "fr": "Une salle a {r} rangées de {s} places. {t} places sont prises. Combien sont libres ?",
            "zh": "礼堂有{r}排座位，每排{s}个，已经坐了{t}个人，还有多少个空座位？",
        },
    ),
    Template(
        "reading",
        {"t": (40, 99), "p": (3, 20), "d": (2, 9)},
        (("*", "p", "d"), ("-", "t", "r0")),
        {
            "en": "A book has {t} pages. {name} reads {p} pages a day for {d} days. How many pages are left?",
            "fr": "Un livre a {t} pages. {name} lit {p} pages par jour pendant {d} jours. Combien de pages reste-t-il ?",
            "zh": "一本书有{t}页，{name}每天读{p}页，读了{d}天，还剩多少页？",
        },
    ),
    Template(
        "compare",
        {"a": (5, 60), "b": (2, 40)},
        (("+", "a", "b"), ("+", "a", "r0")),
        {
            "en": "{name} has {a} {noun}. {friend} has {b} more than {name}. How many do they have together?",
            "fr": "{name} a {a} {noun}. {friend} en a {b} de plus. Combien cela fait-il en tout ?",
            "zh": "{name}有{a}{unit}{noun}，{friend}比{name}多{b}{unit}，两人一共有多少{unit}？",
        },
    ),
    Template(
        "share",
        {"a": (5, 60), "b": (5, 60), "k": (2, 9)},
        (("+", "a", "b"), ("/", "r0", "k")),
        {
            "en": "{name} has {a} {noun} and {friend} has {b}. They share them all among {k} children. How many does each get?",
            "fr": "{name} a {a} {noun} et {friend} en a {b}. On partage le tout entre {k} enfants. Combien chacun en reçoit-il ?",
            "zh": "{name}有{a}{unit}{noun}，{friend}有{b}{unit}，合起来平均分给{k}个小朋友，每人分到多少{unit}？",
        },
    ),
    Template(
        "travel",
        {"v": (10, 90), "h": (2, 9), "w": (5, 99)},
        (("*", "v", "h"), ("+", "r0", "w")),
        {
            "en": "A train runs {h} hours at {v} km per hour and then {w} km more. How many km is that in all?",
            "fr": "Un train roule {h} heures à {v} km par heure, puis encore {w} km. Combien de km en tout ?",
            "zh": "火车每小时行{v}千米，行了{h}小时，又行了{w}千米，一共行了多少千米？",
        },
    ),
    Template(
        "fence",
        {"l": (10, 60), "w": (3, 39)},
        (("+", "l", "w"), ("*", "r0", "2")),
        {
            "en": "A rectangular garden has sides of {l} m and {w} m. How many metres of fence go around it?",
            "fr": "Un jardin rectangulaire a des côtés de {l} m et {w} m. Combien de mètres de clôture en font le tour ?",
            "zh": "一个长方形花园，两条边分别是{l}米和{w}米，围一圈篱笆要多少米？",
        },
    ),
    Template(
        "coach",
        {"a": (6, 14), "b": (2, 6), "k": (3, 4)},
        (("+", "a", "b"), ("*", "r0", "k")),
        {
            "en": "{name} is {a} years old. {friend} is {b} years older. The coach is {k} times as old as {friend}. How old is the coach?",
            "fr": "{name} a {a} ans. {friend} a {b} ans de plus. Le professeur a {k} fois l'âge de {friend}. Quel âge a le professeur ?",
            "zh": "{name}{a}岁，{friend}比{name}大{b}岁，老师的年龄是{friend}的{k}倍，老师多少岁？",
        },
    ),
    Template(
        "eggs",
        {"k": (2, 9), "m": (4, 20), "n": (2, 30), "p": (2, 30)},
        (("*", "k", "m"), ("-", "r0", "n"), ("+", "r1", "p")),
        {
            "en": "A shop has {k} boxes of {m} eggs. It sells {n} eggs, then gets {p} more. How many eggs are there now?",
            "fr": "Un magasin a {k} boîtes de {m} œufs. Il vend {n} œufs, puis en reçoit {p}. Combien d'œufs a-t-il maintenant ?",
            "zh": "商店有{k}盒鸡蛋，每盒{m}个，卖出{n}个，又运来{p}个，现在有多少个鸡蛋？",
        },
    ),
    Template(
        "saving",
        {"a": (5, 60), "s": (2, 20), "w": (2, 9), "b": (5, 90)},
        (("*", "s", "w"), ("+", "a", "r0"), ("-", "r1", "b")),
        {
            "en": "{name} has {a} euros, saves {s} euros a week for {w} weeks, then spends {b} euros. How many euros are left?",
            "fr": "{name} a {a} euros, met de côté {s} euros par semaine pendant {w} semaines, puis en dépense {b}. Combien lui reste-t-il ?",
            "zh": "{name}有{a}元，每周存{s}元，存了{w}周，然后花掉{b}元，还剩多少元？",
        },
    ),
    Template(
        "tickets",
        {"n": (2, 9), "p": (5, 20), "m": (2, 9), "q": (3, 15)},
        (("*", "n", "p"), ("*", "m", "q"), ("+", "r0", "r1")),
        {
            "en": "A ticket costs {p} euros for adults and {q} euros for children. How much do {n} adults and {m} children pay?",
            "fr": "Un billet coûte {p} euros pour un adulte et {q} euros pour un enfant. Combien paient {n} adultes et {m} enfants ?",
            "zh": "成人票每张{p}元，儿童票每张{q}元，{n}个大人和{m}个小孩一共付多少元？",
        },
    ),
)
