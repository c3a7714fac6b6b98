"""Every thought is true line by line, every reference answer is right, and every perturbed one is wrong."""

import ast
import itertools
import operator
import random
import re
from collections import Counter
from datetime import date, timedelta
from fractions import Fraction
from statistics import mean

import pytest

from sobre.tasks.arithmetic import combine, number
from sobre.tasks.base import DIFFICULTIES, NO, YES, Problem
from sobre.tasks.config import LANGS
from sobre.tasks.countdown import Term, made_of, search
from sobre.tasks.dates import after_month
from sobre.tasks.format import completion, response
from sobre.tasks.knights import NAMES as PEOPLE
from sobre.tasks.registry import TASKS, task
from sobre.tasks.sequence import differences
from sobre.tasks.steps import apply, is_easy, line

BINARY = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
NAMES = tuple(TASKS)
ONE_NUMBER = ("arithmetic", "word", "equation", "sequence", "sums")
NO_EQUATIONS = ("sorting", "copy", "reverse", "knights")


def value(text: str, x: str = "") -> Fraction:
    """The value of a part of a thought, by Python's parser; `x` stands for the unknown of an equation."""

    def walk(node: ast.expr) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(node.value)
        if isinstance(node, ast.UnaryOp):
            if isinstance(node.op, ast.UAdd):
                return walk(node.operand)
            assert isinstance(node.op, ast.USub)
            return -walk(node.operand)
        assert isinstance(node, ast.BinOp)
        return BINARY[type(node.op)](walk(node.left), walk(node.right))

    text = re.sub(r"(\d)([x(])", r"\1*\2", text).replace("x", f"({x})")
    return walk(ast.parse(text, mode="eval").body)


def draw(name: str, n: int, difficulty: int | None = None) -> list[tuple[Problem, str]]:
    """n problems with thoughts, languages and (unless given) difficulties in turn."""
    result = []
    for index in range(n):
        rng = random.Random(f"{name}/{index}")
        level = difficulty or index // 3 % 5 + 1
        problem = TASKS[name].problem(rng, LANGS[index % 3], level)
        result.append((problem, TASKS[name].thought(problem, rng)))
    return result


@pytest.fixture(scope="module")
def drawn() -> dict[str, list[tuple[Problem, str]]]:
    return {name: draw(name, 900) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_every_equation_of_every_thought_holds(name, drawn):
    checked = 0
    for problem, thought in drawn[name]:
        for equation in (word for word in thought.split() if "=" in word):
            values = {value(part, problem.answer) for part in equation.partition(":")[0].split("=")}
            assert len(values) == 1, f"{problem.key}: {equation}"
            checked += 1
    assert checked > 900 or name in NO_EQUATIONS


@pytest.mark.parametrize("name", ONE_NUMBER)
def test_a_thought_arrives_at_the_answer(name, drawn):
    for problem, thought in drawn[name]:
        reached = [each.split("=")[-1] for each in thought.split("\n") if name != "equation" or each.startswith("x=")]
        assert reached[-1] == problem.answer


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_answer_is_right_and_its_neighbours_are_wrong(name, drawn):
    for problem, _ in drawn[name]:
        assert task(name).score(problem, problem.answer)
        assert not any(task(name).score(problem, wrong) for wrong in perturbed(problem))


def perturbed(problem: Problem) -> list[str]:
    """Wrong answers close to the right one."""
    answer = problem.answer
    if problem.task in ("countdown", "formula"):
        swaps = (
            answer[:i] + op + answer[i + 1 :] for i, c in enumerate(answer) if c in "+-*/" for op in "+-*/" if op != c
        )
        wrong = []
        for swapped in swaps:
            try:
                if value(swapped) != problem.data["target"]:
                    wrong.append(swapped)
            except ZeroDivisionError:
                wrong.append(swapped)
        return [*wrong, f"{answer}+0", f"{answer}*1", answer[:-1], str(problem.data["target"])]
    numbers = answer.split()
    if len(numbers) > 1 and all(map(str.isdigit, numbers)):
        swapped = [numbers[1], numbers[0], *numbers[2:]]
        wrong = (" ".join(each) for each in (swapped, numbers[1:], [*numbers, numbers[-1]], reversed(numbers)))
        return [each for each in wrong if each != answer]
    if problem.task == "dates" and "-" in answer:
        day = date.fromisoformat(answer)
        near = [str(day + timedelta(days=n)) for n in (-1, 1, 31, 365)]
        return [*near, answer.replace("-0", "-"), f"{answer}."] if "-0" in answer else near
    if problem.task == "knights":
        present = PEOPLE[: len(problem.data["claims"])]
        toggled = (sorted(set(answer.split()) ^ {name}) for name in present)
        return [" ".join(each) for each in toggled] + [f"{answer} {answer[0]}", answer.lower(), "", "none"]
    if not re.fullmatch(r"-?\d+", answer):
        return ["", answer[:-1], f"{answer}?", f"{answer} {answer}"]
    number = int(answer)
    return [str(n) for n in (number + 1, number - 1, number + 10, number * 10 + 1)] + ([str(-number)] if number else [])


@pytest.mark.parametrize("name", NAMES)
def test_a_problem_has_one_key_in_every_language(name):
    for index in range(200):
        problems = [TASKS[name].problem(random.Random(index), lang, index % 5 + 1) for lang in LANGS]
        assert len({problem.key for problem in problems}) == 1
        assert len({problem.prompt for problem in problems}) == 3
        assert len({problem.answer for problem in problems}) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_thought_holds_no_word_of_another_language(name, drawn):
    words = {lang: {YES[lang], NO[lang]} for lang in LANGS}
    for problem, thought in drawn[name]:
        people = set(PEOPLE) if name == "knights" else set()
        assert set(re.findall(r"[^\W\d_x]+", thought)) <= words[problem.lang] | people


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_lower_levels_ask_for_less(name):
    lengths = [mean(len(thought) for _, thought in draw(name, 300, level)) for level in DIFFICULTIES]
    assert lengths[0] < lengths[2] < lengths[4]
    if name != "countdown":  # where larger numbers leave fewer products below a hundred to try
        assert all(easy <= hard * 1.1 for easy, hard in itertools.pairwise(lengths))


@pytest.mark.parametrize("name", NAMES)
def test_responses_at_the_tests_difficulty_are_short(name):
    lengths = [len(completion(thought, problem.answer)) for problem, thought in draw(name, 500, 3)]
    usual, longest = {"countdown": (150, 360), "sequence": (140, 200)}.get(name, (125, 170))
    assert mean(lengths) < usual
    assert max(lengths) < longest


def test_arithmetic_stays_within_what_a_thought_can_do():
    for problem, thought in draw("arithmetic", 900, 3):
        expression = problem.data["expression"]
        assert value(expression) == int(problem.answer)
        assert 2 <= len(re.findall(r"[-+*]", expression)) <= 4
        assert all(0 <= int(n) <= 99 for n in re.findall(r"\d+", expression))
        operations = [each for each in thought.split("\n") if "=" in each]
        for step in operations[:-1]:
            assert 0 <= int(step.split("=")[-1]) <= 999
        for left, right in re.findall(r"(\d+)\*(\d+)", "\n".join(operations)):
            assert min(int(left), int(right)) <= 9
            assert max(int(left), int(right)) <= 99


def test_arithmetic_writes_what_is_left_after_each_operation():
    for problem, thought in draw("arithmetic", 900):
        left, lines = problem.data["expression"], thought.split("\n")
        while lines:
            operation, *_, result = lines.pop(0).split("=")
            whole = rf"(?<!\d){re.escape(operation)}(?!\d)"
            left, n_found = re.subn(rf"\({whole}\)|{whole}", result, left, count=1)
            assert n_found == 1
            if len(re.findall(r"(?<=[\d)])[-+*]", left)) > 1:
                assert lines.pop(0) == left
        assert left == problem.answer


def test_sums_and_products_in_another_order_are_one_problem():
    three, four, five = number(3), number(4), number(5)
    assert combine("*", combine("+", three, four), five).key == combine("*", five, combine("+", four, three)).key
    assert combine("-", five, four).key != combine("-", four, five).key
    assert combine("-", five, combine("-", four, three)).text == "5-(4-3)"
    assert combine("+", combine("*", three, four), five).text == "3*4+5"


def test_a_sorting_thought_writes_two_digits_and_finds_the_units_of_every_ten():
    for problem, thought in draw("sorting", 600):
        padded, *rows = thought.split("\n")
        assert [int(each) for each in padded.split()] == problem.data["numbers"]
        assert {len(each) for each in padded.split()} == {2}
        groups = [re.fullmatch(r"(\d):(\d*)", each) for each in rows]
        assert [group[1] for group in groups] == [str(ten) for ten in range(10)]
        found = [10 * int(group[1]) + int(unit) for group in groups for unit in group[2]]
        assert found == sorted(problem.data["numbers"])
        assert problem.answer == " ".join(map(str, found))


def test_a_sequences_thought_finds_the_step_that_its_kind_asks_for():
    kinds = set()
    for problem, thought in draw("sequence", 900):
        *shown, following = problem.data["terms"]
        *rest, end = thought.split("\n")
        taken, row = rest[: len(shown) - 1], rest[len(shown) - 1]
        steps = [b - a for a, b in itertools.pairwise(shown)]
        assert [each.split("=")[0] for each in taken] == [f"{b}-{a}" for a, b in itertools.pairwise(shown)]
        assert [int(each.split("=")[-1]) for each in taken] == steps
        assert [int(each) for each in row.split()][: len(steps)] == steps
        assert (problem.data["kind"] == "growing") == (len(thought.split("\n")) == len(steps) + 4)
        if problem.data["kind"] == "growing":
            growth = thought.split("\n")[len(steps) + 1]
            value = int(growth.split("=")[-1])
            assert steps[0] + (value if growth[0] == "+" else -value) == steps[1]
        assert int(end.split("=")[-1]) == following
        kinds.add(problem.data["kind"])
    assert kinds == {"equal", "alternating", "growing", "sums"}


def results(x: int, y: int) -> dict[str, int]:
    """What a countdown may make of two numbers, the larger first: by operation, in order."""
    x, y = max(x, y), min(x, y)
    made = {"+": x + y, "-": x - y, "*": x * y if y > 1 else 0, "/": x // y if y > 1 and x % y == 0 else 0}
    return {op: value for op, value in made.items() if 1 <= value <= 99}


def searched(numbers: list[int], target: int) -> list[list[str]]:
    """The operations of a countdown's search, line by line, up to the target."""
    lines = []
    a, b, c = sorted(numbers, reverse=True)
    for x, y, rest in ((a, b, c), (a, c, b), (b, c, a)):
        for op, made in results(x, y).items():
            lines.append([f"{x}{op}{y}={made}"])
            big, small = max(made, rest), min(made, rest)
            for second, whole in results(made, rest).items():
                if big != target and (second in "+*") == (big < target):
                    lines[-1].append(f"{big}{second}{small}={whole}:{target}")
                    if whole == target:
                        return lines
    raise AssertionError(f"{target} cannot be made of {numbers}")


def test_a_countdown_searches_in_order_up_to_the_target():
    lengths = Counter()
    for problem, thought in draw("countdown", 900, 3):
        numbers, target = problem.data["numbers"], problem.data["target"]
        header, *search, check = thought.split("\n")
        lines, verdicts = [line.split()[:-1] for line in search], [line.split()[-1] for line in search]
        assert header == f"{target}: {' '.join(map(str, sorted(numbers, reverse=True)))}"
        assert lines == searched(numbers, target)
        assert verdicts == [NO[problem.lang]] * (len(lines) - 1) + [YES[problem.lang]]
        assert check == f"{TASKS['countdown'].found(problem)}={target}"
        lengths[len(lines)] += 1
    assert min(lengths) == 1
    assert max(lengths) > 8


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_countdown_finds_a_right_answer(difficulty):
    for problem, thought in draw("countdown", 120, difficulty):
        found = TASKS["countdown"].found(problem)
        assert TASKS["countdown"].score(problem, found)
        assert f"<answer>{found}</answer>" in response(problem, thought)


def reachable(numbers: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value that uses all of the numbers, by brute force."""
    if len(numbers) == 1:
        return set(numbers)
    values = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        x, y = numbers[i], numbers[j]
        for made in {x + y, x - y, x * y} | ({x / y} if y else set()):
            values |= reachable((made, *rest))
    return values


def test_every_countdown_has_a_solution():
    for problem, _ in draw("countdown", 60):
        assert problem.data["target"] in reachable(tuple(map(Fraction, problem.data["numbers"])))


def test_a_countdown_search_misses_no_easy_solution():
    rng = random.Random(3)
    for _ in range(100):
        terms = [Term(n, str(n)) for n in (rng.randint(1, 25) for _ in range(3))]
        a, b, c = terms
        makes = {
            whole.term.value
            for pair, rest in (((a, b), c), ((a, c), b), ((b, c), a))
            for made in made_of(*pair)
            for whole in made_of(made.term, rest)
        }
        for target in range(2, 100):
            _, found = search(terms, target, "yes", "no")
            assert bool(found) == (target in makes), (terms, target)
            assert found is None or value(found) == target


def test_an_equation_is_solved_by_its_answer_alone():
    for problem, thought in draw("equation", 600):
        left, right = problem.data["equation"].split("=")
        assert value(left, problem.answer) == value(right, problem.answer)
        assert value(left, str(int(problem.answer) + 1)) != value(right, str(int(problem.answer) + 1))
        assert thought.endswith(f"={value(right, problem.answer)} {YES[problem.lang]}")
        assert f"={value(left, problem.answer)}" in thought.replace(" ", "\n").split("x=")[-1]


def test_the_shown_terms_of_a_sequence_have_one_continuation():
    for problem, _ in draw("sequence", 900, 3):
        *shown, following = problem.data["terms"]
        d = [b - a for a, b in itertools.pairwise(shown)]
        rules = []
        if d[0] == d[2] and d[1] == d[3]:
            rules.append(shown[-1] + d[0])
        if d[1] - d[0] == d[2] - d[1] == d[3] - d[2]:
            rules.append(shown[-1] + d[3] + d[1] - d[0])
        assert set(rules) == {following}
        assert min(shown) >= 0


def test_alternating_steps_differ():
    for index in range(300):
        first, second, third = differences(random.Random(index), "alternating", 3, 3)
        assert first == third != second


def test_a_copy_and_a_reverse_take_the_numbers_one_a_line():
    for name in ("copy", "reverse"):
        for problem, thought in draw(name, 300):
            shown = re.findall(r"\d+", problem.prompt)
            assert thought.split("\n") == problem.answer.split() == (shown if name == "copy" else shown[::-1])


def test_a_formula_holds_what_its_steps_do_and_its_thought_ends_in_it():
    for problem, thought in draw("formula", 300):
        header, *steps, formula = thought.split("\n")
        target, numbers = header.split(": ")
        assert formula.endswith(f"={target}")
        assert Counter(numbers.split()) == Counter(re.findall(r"\d+", problem.answer))
        assert ", ".join(steps) in problem.prompt
        assert formula == f"{problem.answer}={steps[-1].split('=')[1]}"
        taken = [{int(n) for n in re.findall(r"\d+", step.split("=")[0])} for step in steps]
        results = [int(step.split("=")[1]) for step in steps]
        assert all(result in after for result, after in zip(results, taken[1:], strict=False))


def test_a_date_is_the_calendars_and_its_thought_walks_every_month():
    kinds = set()
    for problem, thought in draw("dates", 900):
        kind, start, end, n = (problem.data[key] for key in ("kind", "start", "end", "n"))
        kinds.add((problem.difficulty, kind))
        assert end.toordinal() - start.toordinal() == (-n if kind == "earlier" else n)
        assert str(start) in problem.prompt
        reached = int(re.split(r"[= ]", thought)[-1])
        assert reached == (n if kind == "between" else end.day)
        for name, text in re.findall(r"(\d{4}-\d{2}): (.*)", thought):
            month = date.fromisoformat(f"{name}-01")
            assert str((after_month(month) - month).days) in re.findall(r"\d+", text.split("=")[0])
    assert {kind for level, kind in kinds if level < 3} == {"later"}
    assert {kind for level, kind in kinds if level in (3, 4)} == {"later", "earlier"}
    assert {kind for level, kind in kinds if level == 5} == {"between"}


SAID = {
    "is": r"([A-E])(?: is a | est un |是)(knight|chevalier|骑士|knave|coquin|无赖)",
    "alike": r"([A-E])(?: and | et |和)([A-E])(.*(?:kind|genre|类).*)",
}


def meant(text: str, world: dict[str, bool]) -> bool:
    """Whether a quoted statement is true, read from its words alone."""
    if alike := re.match(SAID["alike"], text):
        return (world[alike[1]] == world[alike[2]]) != bool(re.search("different|différents|不", alike[3]))
    parts = [world[who] == (kind in ("knight", "chevalier", "骑士")) for who, kind in re.findall(SAID["is"], text)]
    return any(parts) if re.search(" or | ou |或者", text) else all(parts)


def test_the_words_of_knights_and_knaves_have_one_solution_and_it_is_the_answer():
    for problem, thought in draw("knights", 600):
        said = dict(re.findall(r"([A-E])(?:: \"| : « |：“)(.+?)\.?(?:\"| »|。”)", problem.prompt))
        assert len(said) == len(problem.data["claims"])
        worlds = [dict(zip(said, kinds, strict=True)) for kinds in itertools.product((True, False), repeat=len(said))]
        right = [w for w in worlds if all(meant(text.rstrip("."), w) == w[who] for who, text in said.items())]
        assert [" ".join(who for who in said if w[who]) for w in right] == [problem.answer], problem.prompt
        *tried, found = thought.split("\n")
        assert found == " ".join(f"{who}{'+' if right[0][who] else '-'}" for who in said) + f" {YES[problem.lang]}"
        for each in tried:
            assumed, speaker = dict(re.findall(r"([A-E])([+-])", each)), each[-1]
            world = {who: kind == "+" for who, kind in assumed.items()}
            assert meant(said[speaker], world) != world[speaker], f"{problem.prompt} {each}"


def test_every_word_problem_shows_all_of_its_numbers():
    for problem, thought in draw("word", 900):
        shown = problem.prompt
        assert "{" not in shown
        assert all(n in re.findall(r"\d+", shown) for n in problem.key.split(":")[2].split())
        steps = {1: (1, 1), 2: (1, 2), 3: (2, 3), 4: (3, 4), 5: (4, 5)}[problem.difficulty]
        assert steps[0] <= len(thought.split("\n")) <= steps[1]


EVENT = re.compile(
    r"(?P<packs>gets|buys|reçoit|achète|得到|买了)(?P<n> ?\d+) ?"
    r"(?:bags of|boxes of|sachets de|boîtes de|[袋盒]，每[袋盒]) ?(?P<m>\d+)"
    r"|(?:buys|finds|achète encore|en trouve|买了|找到) ?(?P<plus>\d+)"
    r"|(?:gives|loses|donne|perd|送给[^\d]+|弄丢了) ?(?P<minus>\d+)"
)
TEMPLATE_ANSWERS = {
    "shop": lambda n, p, q: n * p + q,
    "change": lambda n, p, m: m - n * p,
    "rows": lambda r, s, t: r * s - t,
    "reading": lambda t, p, d: t - p * d,
    "compare": lambda a, b: a + a + b,
    "share": lambda a, b, k: (a + b) / k,
    "travel": lambda v, h, w: v * h + w,
    "fence": lambda l, w: 2 * l + 2 * w,  # noqa: E741
    "coach": lambda a, b, k: (a + b) * k,
    "eggs": lambda k, m, n, p: k * m - n + p,
    "saving": lambda a, s, w, b: a + s * w - b,
    "tickets": lambda n, p, m, q: n * p + m * q,
}


def test_what_a_word_problem_tells_gives_its_answer():
    stories = 0
    for problem, _ in draw("word", 900):
        _, template, numbers = problem.key.split(":")
        if template in TEMPLATE_ANSWERS:
            assert TEMPLATE_ANSWERS[template](*map(int, numbers.split())) == int(problem.answer)
            continue
        have = int(re.search(r"\d+", problem.prompt)[0])
        events = list(EVENT.finditer(problem.prompt))
        assert len(events) == template.count("-"), problem.prompt
        for each in events:
            packs = int(each["n"]) * int(each["m"]) if each["packs"] else 0
            have += packs + int(each["plus"] or 0) - int(each["minus"] or 0)
        assert have == int(problem.answer), problem.prompt
        stories += 1
    assert stories > 300


@pytest.mark.parametrize(
    ("op", "left", "right", "shown"),
    [
        ("+", 47, 38, "47+38=77+8=85"),
        ("+", 47, 238, "47+238=247+38=277+8=285"),
        ("+", 300, 20, "300+20=320"),
        ("+", 3, 0, "3+0=3"),
        ("-", 162, 72, "162-72=92-2=90"),
        ("-", 347, 108, "347-108=247-8=239"),
        ("-", 65, 92, "65-92=-(92-65)=-(32-5)=-27"),
        ("-", 3, 10, "3-10=-(10-3)=-7"),
        ("*", 7, 68, "7*68=420+56=470+6=476"),
        ("*", 9, 8, "9*8=72"),
        ("*", 7, 60, "7*60=420"),
        ("/", 162, 9, "162/9=10+72/9=10+8=18"),
        ("/", 72, 9, "72/9=8"),
    ],
)
def test_a_line_uses_up_one_digit_at_a_time(op, left, right, shown):
    assert line(op, left, right) == shown


def test_all_terms_of_a_line_are_equal():
    rng = random.Random(0)
    for _ in range(3000):
        op = rng.choice("+-*/")
        left, right = (
            (rng.randint(0, 99), rng.randint(2, 9)) if op in "*/" else (rng.randint(0, 499), rng.randint(0, 499))
        )
        shown = line(op, left * right if op == "/" else left, right)
        assert len({eval(term.replace("/", "//")) for term in shown.split("=")}) == 1, shown


def test_only_small_exact_operations_are_easy():
    assert is_easy("*", 9, 99)
    assert not is_easy("*", 10, 10)
    assert not is_easy("*", 9, 100)
    assert not is_easy("-", 3, 4)
    assert not is_easy("/", 7, 2)
    assert not is_easy("/", 7, 0)
    assert not is_easy("+", 999, 1)
    assert apply("/", 84, 7) == 12
