"""Metric names and values in tables."""

from crkd_cli.metrics.names import format_values, metric_heading


def test_headings_and_values_of_tables() -> None:
    assert [metric_heading(metric) for metric in ("dice", "hd95_mm", "nsd_2mm")] == [
        "Dice %",
        "HD95 mm",
        "NSD % at 2mm",
    ]
    assert format_values("dice", 0.7106, float("nan"), -0.0003) == ["71.1", "–", "0.0"]
    assert format_values("hd95_px", 2.345, -0.004, -1.0) == ["2.35", "0.00", "-1.00"]
