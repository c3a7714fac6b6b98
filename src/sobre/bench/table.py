"""A result file in lines for the terminal."""

from collections.abc import Sequence
from typing import Any

Row = Sequence[str]


def table(document: dict[str, Any]) -> str:
    """What was found, by what code and on what machine."""
    machine = document["machine"]
    commit = (document["commit"] or "unknown")[:12] + (" (changed since)" if document["dirty"] else "")
    threads = f"{machine['threads']} thread(s), " if machine["threads"] else ""
    head = f"{document['name']}   commit {commit}   {document['date']}   {machine['cpu']}, {threads}"
    lines = [head + f"torch {machine['packages']['torch']}, transformers {machine['packages']['transformers']}", ""]
    lines += [f"checked: {c['what']}: {c['value']:.2g} (at most {c['limit']:.0e})" for c in document["check"]]
    show = {"timing": _timing, "quality": _quality}.get(document["kind"], _summary)
    lines += show(document)
    return "\n".join([*lines, *(f"note: {note}" for note in document["notes"])])


def align(rows: Sequence[Row]) -> list[str]:
    """Columns as wide as their widest cell; the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def _timing(document: dict[str, Any]) -> list[str]:
    rows: list[Row] = [("contestant", "seconds", "per second")]
    for name, found in document["medians"].items():
        rows.append((name, f"{found['wall_s']:.3f}", f"{found['per_s']:,.0f} {found['unit']}"))
    lines = ["", *align(rows), ""]
    ratios: list[Row] = [("of / over", "median", "lowest", "highest", "by CPU clock", "target")]
    for found in document["ratios"]:
        least, most, target = min(found["rounds"]), max(found["rounds"]), found["target"]
        values = [f"{value:.2f}" for value in (found["median"], least, most, found["cpu_median"])]
        goal = "" if target is None else f"{target:.2f} {'reached' if found['median'] >= target else 'missed'}"
        ratios.append((f"{found['of']} / {found['over']}", *values, goal))
    lines += align(ratios) if document["ratios"] else []
    for name, found in document.get("guesses", {}).items():
        lines.append(
            f"{name}: {found['right']:.1%} right, {found['tokens_per_step']:.2f} tokens a step where"
            f" {found['plain_tokens_per_step']:.2f} were; {found['same_answers']:.0%} of the answers are the same"
        )
    for side, found in document.get("memory", {}).items():
        lines.append(f"memory of {side}: grows by {found['grown_mib']:,.0f} MiB to {found['peak_mib']:,.0f} MiB")
    return lines


def _quality(document: dict[str, Any]) -> list[str]:
    rows: list[Row] = [("form of the model", "bits per byte", "KL to bfloat16", "KL to float32", "same best token")]
    for name, found in document["contestants"].items():
        kls = f"{found['kl_to_bfloat16']:.5f}", f"{found['kl_to_float32']:.5f}"
        rows.append((name, f"{found['bits_per_byte']:.4f}", *kls, f"{found['same_best']:.1%}"))
    return ["", *align(rows)]


def _race(document: dict[str, Any]) -> list[str]:
    race = document["race"]
    rows: list[Row] = [
        ("contestant", "equal", "share", race["score"], "lowest", "highest", "runs", "s", "FLOPs", "usd")
    ]
    for point in sorted(race["points"], key=lambda point: (point["kind"], point["share"], point["mean"])):
        band = [f"{point[key]:.4f}" for key in ("mean", "lowest", "highest")]
        costs = [f"{point[key]:.3g}" if key in point else "" for key in ("seconds", "flops", "usd")]
        rows.append((point["contestant"], point["kind"], f"{point['share']:g}", *band, str(point["n"]), *costs))
    lines = ["", *align(rows), ""]
    for kind, winner in race["winners"].items():
        if winner:
            how = "its band apart from all others" if winner["clear"] else "within the band of another"
            lines.append(f"equal {kind}: {winner['contestant']} won, {how}")
    return lines


def _law(document: dict[str, Any]) -> list[str]:
    """The cells with what the fit says of them; before there is a fit, what was measured."""
    law = document["law"]
    if law is None:
        rows: list[Row] = [("cell", "N", "tokens", "nats per token", "bits per byte")]
        for cell in document["cells"]:
            found = cell["figures"]
            figures = f"{found['nats per token']:.4f}", f"{found['bits per byte']:.4f}"
            rows.append((cell["contestant"], f"{found['n']:,.0f}", f"{found['d']:,.0f}", *figures))
        return ["", *align(rows), ""]
    rows = [("model", "N", "tokens", "FLOPs", "nats per token", "bits per byte", "fitted", "left out")]
    for point in law["points"]:
        sizes = f"{point['n']:,.0f}", f"{point['d']:,.0f}", f"{point['flops']:.3g}"
        errors = f"{point['fitted']:+.2%}", f"{point['left_out']:+.2%}"
        rows.append((point["model"], *sizes, f"{point['loss']:.4f}", f"{point['bits_per_byte']:.4f}", *errors))
    constants = "nats per token = {e:.4g} + {a:.4g} / N^{alpha:g} + {b:.4g} / D^{beta:g}".format(**law)
    said = f"{law['error']:.2%} root mean square when left out, {law['worst']:.2%} at the most"
    return ["", *align(rows), "", f"{constants}; {said}"]


def _summary(document: dict[str, Any]) -> list[str]:
    if "law" in document:
        return _law(document)
    lines: list[str] = _race(document) if "race" in document else [""]
    for contestant, figures in document["means"].items() if "race" not in document else ():
        rows: list[Row] = [(contestant, "mean", "lowest", "highest", "runs")]
        for name, found in figures.items():
            rows.append((name, *(f"{found[key]:.4g}" for key in ("mean", "lowest", "highest")), str(found["n"])))
        lines += [*align(rows), ""]
    for found in document.get("ratios", []):
        lines.append(f"bits of {found['of']} / {found['over']}: {found['bits']:.3f}, {found['winner']} won")
    targets: list[Row] = [("target", "wanted", "found", "")]
    for found in document["targets"]:
        value = "" if found["value"] is None else f"{found['value']:.4g}"
        verdict = {True: "reached", False: "missed", None: "unknown"}[found["reached"]]
        targets.append((found["what"], f"{found['sign']} {found['limit']:.4g}", value, verdict))
    return lines + (align(targets) if document["targets"] else [])
