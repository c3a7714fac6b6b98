"""Plain sentences about everyday things, by a small grammar written natively in each language.

A sentence is one phrase from each column, in order. The phrases are whole (article, agreement, verb form), so every
combination is grammatical; that is why each column is worded for its place, not translated word by word.
"""

import random

EN = (
    (
        ("In the morning,", "At noon,", "In the evening,", "On Sunday,", "After school,", "When it rains,")
        + ("In winter,", "In summer,", "Today,", "Every week,", "Before dinner,", "Sometimes,")
    ),
    (
        ("my sister", "the old farmer", "a small dog", "the teacher", "our neighbour", "the baker", "a little girl")
        + ("her brother", "the white cat", "the doctor", "my grandfather", "a tired traveller", "the young painter")
    ),
    (
        ("walks slowly", "waits quietly", "sings a song", "eats an apple", "looks for a key", "plays with a red ball")
        + ("sleeps a little", "drinks cold water", "carries a heavy bag", "finds a coin", "watches the birds")
        + ("talks to a friend", "opens a green box", "counts the stars", "makes bread", "draws a house")
    ),
    (
        (
            "in the garden.",
            "near the river.",
            "at the market.",
            "under a big tree.",
            "in the kitchen.",
            "by the window.",
        )
        + ("on the bridge.", "behind the school.", "at the station.", "in a quiet street.", "on the hill.")
    ),
)
FR = (
    (
        ("Le matin,", "À midi,", "Le soir,", "Le dimanche,", "Après l'école,", "Quand il pleut,", "En hiver,")
        + ("En été,", "Aujourd'hui,", "Chaque semaine,", "Avant le dîner,", "Parfois,")
    ),
    (
        ("ma sœur", "le vieux fermier", "un petit chien", "la maîtresse", "notre voisin", "le boulanger")
        + ("une petite fille", "son frère", "le chat blanc", "le médecin", "mon grand-père", "un voyageur fatigué")
    ),
    (
        ("marche lentement", "attend en silence", "chante une chanson", "mange une pomme", "cherche une clé")
        + ("joue avec un ballon rouge", "dort un peu", "boit de l'eau fraîche", "porte un sac lourd")
        + ("trouve une pièce", "regarde les oiseaux", "parle à un ami", "ouvre une boîte verte", "compte les étoiles")
        + ("prépare du pain", "dessine une maison")
    ),
    (
        ("dans le jardin.", "près de la rivière.", "au marché.", "sous un grand arbre.", "dans la cuisine.")
        + ("à la fenêtre.", "sur le pont.", "derrière l'école.", "à la gare.", "dans une rue calme.", "sur la colline.")
    ),
)
ZH = (
    (
        ("早上，", "中午，", "傍晚，", "星期天，", "放学以后，", "下雨的时候，", "冬天，", "夏天，", "今天，")
        + ("每个星期，", "晚饭前，", "有时候，")
    ),
    (
        ("我的姐姐", "老农夫", "一只小狗", "老师", "我们的邻居", "面包师", "一个小女孩", "她的弟弟", "那只白猫")
        + ("医生", "我的爷爷", "一位疲倦的旅人", "年轻的画家")
    ),
    (
        ("在花园里", "在河边", "在市场上", "在大树下", "在厨房里", "在窗边", "在桥上", "在学校后面", "在车站")
        + ("在安静的街上", "在山坡上")
    ),
    (
        ("慢慢地走。", "静静地等着。", "唱一首歌。", "吃一个苹果。", "找一把钥匙。", "玩一个红球。", "睡了一会儿。")
        + ("喝凉水。", "背着一个重包。", "捡到一枚硬币。", "看着小鸟。", "和朋友说话。", "打开一个绿盒子。")
        + ("数星星。", "做面包。", "画一座房子。")
    ),
)
COLUMNS = {"en": EN, "fr": FR, "zh": ZH}
SPACE = {"en": " ", "fr": " ", "zh": ""}


def sentence(rng: random.Random, lang: str) -> str:
    """One sentence of the grammar."""
    return SPACE[lang].join([column[int(rng.random() * len(column))] for column in COLUMNS[lang]])


def paragraph(rng: random.Random, lang: str) -> str:
    """Three to eight sentences."""
    return SPACE[lang].join([sentence(rng, lang) for _ in range(rng.randint(3, 8))])
