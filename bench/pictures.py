"""The report's line charts as SVG files that stand alone, with their colours, a key and the words of both axes."""

from collections.abc import Sequence
from html import escape

from recipes.reports.charts import HEIGHT, LEFT, WIDTH, Line, line_chart

COLOURS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#6b7280")  # charts.py has six
ROW, COLUMNS = 16, 3  # of the key: pixels, names a row


def picture(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    """An SVG: the name of the y axis and the key stand above the lines."""
    rows = -(-len(lines) // COLUMNS)
    top = ROW * (rows + 1) + 8
    words = [f'<text x="6" y="{ROW - top - 2}" style="fill:#555">{escape(y_label)}</text>']
    for number, line in enumerate(lines):
        x = LEFT + (WIDTH - LEFT) // COLUMNS * (number % COLUMNS)
        y = ROW * (2 + number // COLUMNS) - top - 2
        words.append(f'<circle cx="{x + 4}" cy="{y - 4}" r="4" style="fill:{COLOURS[line.colour]}"/>')
        words.append(f'<text x="{x + 14}" y="{y}">{escape(line.name)}</text>')
    variables = "".join(f"--series-{i + 1}:{colour};" for i, colour in enumerate(COLOURS))
    style = f"<style>svg{{{variables}background:#fff;font:12px sans-serif}}"
    style += ".grid{stroke:#ddd}.label{fill:#555}polyline{fill:none;stroke-width:2}</style>"
    drawn = line_chart(lines, x_label, y_label)
    whole = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {-top} {WIDTH} {HEIGHT + top}" '
    inside = drawn.partition(f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" ')[2]
    return (whole + inside).replace(">", f">{style}{''.join(words)}", 1) + "\n"
