"""`crkd methods`."""

from crkd_cli.cli.console import command


@command
def methods() -> None:
    """List the methods: what each adds and costs, published scores.

    Example: crkd methods

    Train with one of them: crkd train --dataset la --labeled 4 --method bcp
    """
    from rich.console import Console
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    from crkd_cli.cli.about import abouts, costs, description
    from crkd_cli.evaluation.literature import all_published_rows
    from crkd_cli.methods import METHODS

    descriptions = {about.name: about for about in abouts()}
    all_costs, published = costs(), all_published_rows()
    table = Table.grid(padding=(0, 2))
    for name in METHODS.names():
        text = "From another package."
        if name in descriptions:
            text = "\n".join(description(descriptions[name], all_costs.get(name), published))
        table.add_row(Text(name, style="bold cyan"), Text(text))
    note = "Step, memory: on ACDC. Dice: published, in %. Sources: docs/methods.md"
    panel = Panel(table, title="Methods", title_align="left", subtitle=note, border_style="dim")
    Console().print(panel)
