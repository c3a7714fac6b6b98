"""A reward that is cheated, or not given, is said aloud."""

from sobre.report.facts import facts
from sobre.report.run_files import read_run
from sobre.report.signs import signs


def lines(n=40, **ends):
    """Metric lines in which every field goes evenly from its first value to its second."""
    return [
        {"stage": "rl", "step": i, **{k: a + (b - a) * i / (n - 1) for k, (a, b) in ends.items()}} for i in range(n)
    ]


def test_form_that_rises_while_right_answers_fall_is_called_cheating():
    (line,) = signs(lines(reward=(0.42, 0.40), pass_rate=(0.4, 0.3), format_rate=(0.2, 1.0), difficulty=(3, 3)), {})
    assert line.startswith("The reward may be cheated")
    assert "(form from 27% to 93%)" in line
    assert "right answers fell from 39% to 31%" in line


def test_a_run_with_two_stages_says_which_is_meant():
    cheated = lines(reward=(0.42, 0.40), pass_rate=(0.4, 0.3), format_rate=(0.2, 1.0), difficulty=(3, 3))
    sound = [{**line, "stage": "rl2"} for line in lines(reward=(0.4, 0.5), pass_rate=(0.4, 0.5))]
    (line,) = signs([*cheated, *sound], {})
    assert line.startswith("rl: The reward may be cheated")


def test_harder_problems_or_better_answers_are_no_cheating():
    assert not signs(lines(reward=(0.42, 0.40), pass_rate=(0.4, 0.3), format_rate=(0.2, 1), difficulty=(2, 3)), {})
    assert not signs(lines(reward=(0.42, 0.60), pass_rate=(0.4, 0.5), format_rate=(0.2, 1), difficulty=(3, 3)), {})
    assert not signs(lines(reward=(0.5, 0.4), pass_rate=(0.4, 0.3), format_rate=(1, 1), difficulty=(3, 3)), {})


def test_a_reward_that_rises_while_the_test_falls_is_named():
    stages = {
        "start": {"pass_at_1": 0.5, "ci_low": 0.45, "ci_high": 0.55},
        "rl": {"pass_at_1": 0.3, "ci_low": 0.25, "ci_high": 0.35},
    }
    up = lines(reward=(0.4, 0.6), pass_rate=(0.3, 0.5))
    (line,) = signs(up, stages)
    assert "accuracy on the test fell from 50.0% to 30.0%" in line
    stages["rl"] |= {"ci_high": 0.46}
    assert not signs(up, stages)


def test_answers_without_a_verdict_are_counted():
    seen = lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4), truncated=(0.1, 0.9), empty=(0, 0.9))
    seen[3] |= {"unjudged": 5, "slow_to_judge": 2}
    said = " ".join(signs(seen, {}))
    for part in ("5 answers could not be judged", "2 answers took too long", "83% of the answers were cut"):
        assert part in said
    assert "82% of the answers were empty" in said


def test_a_stage_whose_steps_share_nothing_is_said_to_follow_chance():
    (line,) = signs(lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4), signal=(0.01, 0.02)), {})
    assert "the steps shared 1.9% at most" in line
    (line,) = signs(lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4), signal=(-0.02, -0.01)), {})
    assert "nothing that can be told from chance" in line
    assert not signs(lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4), signal=(0.2, -0.02)), {}), "learned, then spent"
    assert not signs(lines(n=19, reward=(0.4, 0.4), pass_rate=(0.4, 0.4), signal=(0.01, 0.01)), {}), "too few steps"
    assert not signs(lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4)), {})
    begun = lines(reward=(0.4, 0.4), pass_rate=(0.4, 0.4), signal=(0.01, 0.01))
    assert len(signs([{**line, "signal": 0.5} for line in begun[:10]] + begun[10:], {})) == 1, "first words are chance"


def test_a_sound_run_has_no_sign_and_the_report_carries_the_others(run_folder):
    assert facts(read_run(run_folder))["signs"] == []
    assert signs([], {}) == []
