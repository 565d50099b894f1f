"""Draw the pages and write the files beside them: a corpus, queries, judged pairs, and all candidates of each query.

    python examples/pages/make.py [FOLDER]

Pillow is all it needs. Other releases of Pillow set the letters a little differently; sizes and files stay the same.
The town and its people are invented.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT, MARGIN = 620, 877, 56  # A4 at 75 dots an inch
INK, GREY, PALE = "#202020", "#707070", "#dddddd"
BLUE, GREEN, RED, SAND = "#2a5b9c", "#3b7a45", "#b03a2e", "#e8d8a8"

Point = tuple[float, float]


class Page:
    """A sheet that is filled from the top; `y` is where the next thing goes."""

    def __init__(self, title: str, size: int = 26) -> None:
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN
        self.text(MARGIN, self.y, title, size)
        self.y += size + 18

    def text(self, x: float, y: float, text: str, size: int = 15, ink: str = INK, anchor: str = "la") -> None:
        self.draw.text((x, y), text, fill=ink, font=ImageFont.load_default(size), anchor=anchor)

    def line(self, *points: Point, ink: str = INK, width: int = 1) -> None:
        self.draw.line(points, fill=ink, width=width, joint="curve")

    def paragraph(self, text: str, x: float = MARGIN, columns: int = 72, size: int = 15) -> None:
        for line in textwrap.wrap(text, columns):
            self.text(x, self.y, line, size)
            self.y += size + 6
        self.y += 10

    def heading(self, text: str, x: float = MARGIN) -> None:
        self.text(x, self.y, text, 19)
        self.y += 30

    def table(self, rows: Sequence[Sequence[str]], stops: Sequence[int], step: int = 30) -> None:
        """Rows under a first one that is underlined; every column but the first ends at its stop."""
        for number, row in enumerate(rows):
            for column, (stop, cell) in enumerate(zip(stops, row, strict=True)):
                self.text(stop, self.y, cell, anchor="ra" if column else "la")
            below = self.y + step - 8
            self.line((MARGIN, below), (WIDTH - MARGIN, below), ink=INK if number == 0 else PALE)
            self.y += step
        self.y += 14


# ---- the pages


def notice() -> Page:
    page = Page("Linden Water Works")
    page.text(WIDTH - MARGIN, page.y, "3 May", anchor="ra")
    page.y += 40
    page.heading("Your water will be off on Thursday")
    page.paragraph("Dear residents of Mill Lane and Station Road,")
    page.paragraph(
        "On Thursday, 12 May, we replace the main pipe below Mill Lane. There will be no water in Mill Lane and in"
        " Station Road, numbers 1 to 28, from 8 in the morning until about 4 in the afternoon."
    )
    page.paragraph(
        "Please fill a few jugs the evening before, close all taps, and switch off washing machines. Drinking water can"
        " be fetched from the tank wagon in front of the fire station."
    )
    page.paragraph(
        "The water may look brown when it comes back. This is rust, and it does no harm. Let the cold tap in the"
        " kitchen run for five minutes before you drink from it. Do not wash white clothes before the water is clear."
    )
    page.paragraph("If your water is still off after 6 in the evening, call 555 0137 at any hour.")
    page.paragraph("With kind regards,")
    page.line(*((MARGIN + 3 * x, page.y + 16 - 14 * math.sin(x / 2) * math.cos(x / 5)) for x in range(40)), width=2)
    page.y += 44
    page.paragraph("Ada Brook, pipes and mains")
    return page


def article() -> Page:
    page = Page("How bees keep warm in winter")
    page.paragraph(
        "Honeybees do not sleep through the winter, and they do not fly south. When the air grows colder than about 10"
        " degrees, the whole colony draws together into a ball, with the queen in the middle and the honey above her."
    )
    page.heading("A ball that breathes")
    page.paragraph(
        "The bees inside shiver: they work the muscles of their wings without moving the wings, and this makes heat."
        " The bees outside stand close together with their heads inwards, like the tiles of a roof. In the middle of"
        " the ball it is 20 to 30 degrees, even when snow covers the hive. The colder it is, the tighter they sit."
    )
    page.paragraph(
        "Nobody stays outside for long. Bees that have cooled down move in, and warm ones take their places."
    )
    page.heading("What they live on")
    page.paragraph(
        "A colony eats 10 to 15 kilograms of honey before the first willows flower. Slowly the ball climbs up the combs"
        " and empties them. Most colonies that die in winter have not frozen. They have run out of honey, or lost touch"
        " with it during a long frost."
    )
    page.heading("What you can do")
    page.paragraph(
        "Leave the hive shut. Keep mice out and the entrance free of dead bees. Lift the hive a little at the back in"
        " January: if it is light, give sugar paste. And wrap nothing around it. Damp kills sooner than cold."
    )
    return page


RAIN = {
    "January": (71, 96, 54),
    "February": (52, 78, 41),
    "March": (58, 81, 45),
    "April": (44, 63, 38),
    "May": (49, 60, 47),
    "June": (55, 66, 52),
    "July": (60, 71, 58),
    "August": (68, 83, 61),
    "September": (66, 88, 50),
    "October": (93, 127, 68),
    "November": (88, 121, 66),
    "December": (80, 109, 59),
}


def rainfall() -> Page:
    page = Page("Rainfall by month")
    page.paragraph("Millimetres, mean of the years 1991 to 2020, at three weather stations of the district.")
    rows = [(month, *map(str, fall)) for month, fall in RAIN.items()]
    year = ("Year", *(str(sum(station)) for station in zip(*RAIN.values(), strict=True)))
    page.table([("Month", "Linden", "High Moor", "Gull Island"), *rows, year], (MARGIN, 290, 430, 560), step=36)
    page.paragraph("High Moor is the wettest place because clouds from the sea rise there first.", size=13)
    return page


def axes(page: Page, names: Sequence[str], top: int, step: int) -> tuple[float, float, float]:
    """Draw the frame of a chart; return x of the first name, the distance to the next, and y of zero."""
    left, zero, height = MARGIN + 40, page.y + 400, 380
    for value in range(0, top + 1, step):
        y = zero - height * value / top
        page.line((left, y), (WIDTH - MARGIN, y), ink=PALE)
        page.text(left - 8, y, str(value), 13, anchor="rm")
    page.line((left, zero - height), (left, zero), (WIDTH - MARGIN, zero))
    gap = (WIDTH - MARGIN - left) / len(names)
    for number, name in enumerate(names):
        page.text(left + gap * (number + 0.5), zero + 8, name, 13, anchor="ma")
    page.y = zero + 50
    return left + gap / 2, gap, zero


def passengers() -> Page:
    page = Page("Ferry passengers")
    page.paragraph("Passengers between Linden and Gull Island, in thousands, last year by month.")
    months = [month[:3] for month in RAIN]
    x, gap, zero = axes(page, months, 60, 10)
    for number, value in enumerate((9, 8, 14, 23, 31, 40, 52, 57, 33, 20, 11, 12)):
        y = zero - 380 * value / 60
        page.draw.rectangle((x + gap * (number - 0.35), y, x + gap * (number + 0.35), zero), fill=BLUE)
        page.text(x + gap * number, y - 4, str(value), 12, anchor="md")
    page.paragraph(
        "Three of four passengers travelled between April and September. In February the ferry was in the dock for nine"
        " days, and a smaller boat took its place."
    )
    return page


def flood() -> Page:
    page = Page("The river in the March flood")
    page.paragraph("Level at the Mill Lane bridge, in centimetres, at noon of each day.")
    x, gap, zero = axes(page, [f"{day} Mar" for day in range(9, 19)], 600, 100)
    levels = (140, 150, 210, 340, 470, 548, 510, 400, 290, 230)
    points = [(x + gap * day, zero - 380 * level / 600) for day, level in enumerate(levels)]
    warning = zero - 380 * 420 / 600
    page.line((x - gap / 2, warning), (WIDTH - MARGIN, warning), ink=RED, width=2)
    page.text(x - gap / 2 + 6, warning - 6, "cellars are flooded", 13, RED, "ld")
    page.line(*points, ink=BLUE, width=3)
    for a, b in points:
        page.draw.ellipse((a - 4, b - 4, a + 4, b + 4), fill=BLUE)
    page.text(points[5][0], points[5][1] - 10, "548", 14, anchor="md")
    page.paragraph(
        "Snow on High Moor melted within two days, while it rained without a break from the 11th to the 13th."
    )
    return page


def form() -> Page:
    page = Page("Application for a library card")
    page.paragraph("Town Library of Linden, Market Square 4. Please write in capital letters.")
    for name in ("First name", "Family name", "Date of birth", "Street and number", "Town", "Telephone", "E-mail"):
        page.text(MARGIN, page.y + 8, name)
        page.draw.rectangle((MARGIN + 160, page.y, WIDTH - MARGIN, page.y + 32), outline=GREY)
        page.y += 46
    page.y += 8
    for choice in ("Adult, 20 a year", "Under 18, free of charge", "Pensioner or student, 8 a year"):
        page.draw.rectangle((MARGIN, page.y, MARGIN + 16, page.y + 16), outline=INK)
        page.text(MARGIN + 28, page.y, choice)
        page.y += 30
    page.y += 8
    page.paragraph(
        "Bring this form, an identity card and, for children, a parent's signature to the desk. You get your card at"
        " once. With it you may borrow ten books for four weeks, and three films for one week."
    )
    page.y += 40
    for x, name in ((MARGIN, "Date"), (300, "Signature")):
        page.line((x, page.y), (x + (160 if x == MARGIN else WIDTH - MARGIN - 300), page.y))
        page.text(x, page.y + 6, name, 13, GREY)
    return page


def invoice() -> Page:
    page = Page("Hollis & Daughter", 30)
    page.text(MARGIN, page.y - 8, "Heating and plumbing, Quay 11, Linden", 14, GREY)
    page.draw.polygon(((500, 100), (532, 44), (564, 100)), fill=RED)
    page.y += 50
    page.paragraph("To: Mr. T. Okafor, 7 Mill Lane, Linden")
    page.heading("Invoice 2041")
    page.paragraph("Repair of the gas boiler on 18 November. To be paid by 10 December.")
    page.table(
        [
            ("Item", "Number", "Each", "Sum"),
            ("Circulation pump", "1", "164.00", "164.00"),
            ("Seal, 22 mm", "4", "2.50", "10.00"),
            ("Work, hours", "3", "58.00", "174.00"),
            ("Travel", "1", "20.00", "20.00"),
            ("Subtotal", "", "", "368.00"),
            ("Tax, 20 %", "", "", "73.60"),
        ],
        (MARGIN, 340, 450, 560),
        step=34,
    )
    page.text(MARGIN, page.y, "To pay", 20)
    page.text(WIDTH - MARGIN - 4, page.y, "441.60", 20, anchor="ra")
    page.y += 60
    page.paragraph(
        "Two years of guarantee on the pump. Account 0042 1177 at the Harbour Bank; please name the number 2041."
    )
    return page


def town_map() -> Page:
    page = Page("Linden on foot")
    page.paragraph("Blue: water. Green: parks. From the station to the museum it is ten minutes' walk.")
    top = page.y
    page.draw.rectangle((MARGIN, top, WIDTH - MARGIN, 800), outline=INK)
    bank = [(MARGIN + 1 + 2 * step, top + 312 + 40 * math.sin(step / 35)) for step in range(254)]
    page.draw.polygon([*bank, *((x, y + 36) for x, y in reversed(bank))], fill="#a9c8e8")
    page.draw.ellipse((90, top + 40, 230, top + 170), fill="#bcd9b0")
    for street in (
        ((MARGIN, top + 220), (WIDTH - MARGIN, top + 190)),
        ((300, top), (310, top + 310), (330, 800)),
        ((MARGIN, top + 520), (WIDTH - MARGIN, top + 480)),
        ((470, top), (450, top + 205)),
    ):
        page.line(*street, ink=INK, width=12)
        page.line(*street, ink=SAND, width=10)
    for x, y, name in (
        (520, top + 150, "Station"),
        (180, top + 250, "Town hall"),
        (390, top + 90, "Library"),
        (170, top + 460, "Museum"),
        (500, top + 400, "Ferry"),
    ):
        page.draw.rectangle((x - 12, y - 12, x + 12, y + 12), fill=RED)
        page.text(x, y + 16, name, 15, anchor="ma")
    page.text(160, top + 96, "Castle Park", 15, GREEN, "mm")
    page.text(170, top + 366, "River Lin", 15, BLUE, "mm")
    page.line((110, 760), (210, 760), width=3)
    page.text(160, 766, "200 m", 13, anchor="ma")
    return page


def newspaper() -> Page:
    page = Page("THE LINDEN OBSERVER", 36)
    page.line((MARGIN, page.y), (WIDTH - MARGIN, page.y), width=2)
    page.text(MARGIN, page.y + 6, "Saturday, 21 June", 13, GREY)
    page.y += 40
    first, second = page.y, WIDTH / 2 + 10
    page.heading("Wind park gets a permit")
    page.paragraph(
        "The district has allowed nine wind turbines on High Moor. They are to turn from next spring on and to supply"
        " eleven thousand homes. Two farmers have gone to court because of the noise. The town wants to use its share"
        " of the rent to mend the roof of the swimming hall.",
        columns=34,
    )
    page.heading("Goats on the line")
    page.paragraph(
        "Seven goats held up the evening train to Harbour for forty minutes. They had left their field through a gate"
        " that a walker had not shut. A guard led them home with a bag of crisps.",
        columns=34,
    )
    page.line((WIDTH / 2 - 8, first), (WIDTH / 2 - 8, 800), ink=PALE)
    page.y = first
    page.heading("Library opens on Sundays", second)
    page.paragraph(
        "From July on the Town Library is open on Sundays from 1 to 5. Nobody will sit at the desk: doors and shelves"
        " open with the reader's card, which 6,200 people have. Last year they borrowed 91,000 books. Most of all they"
        " asked for detective stories.",
        x=second,
        columns=34,
    )
    page.heading("Gulls win again", second)
    page.paragraph(
        "Gull Island beat Linden 3 to 1 in the island's first home match since the storm. All goals fell in the last"
        " twenty minutes, after the wind had turned.",
        x=second,
        columns=34,
    )
    return page


def timetable() -> Page:
    page = Page("Ferry: Linden to Gull Island")
    page.paragraph("1 April to 31 October. The crossing takes 35 minutes. Bicycles travel free of charge.")
    page.table(
        [
            ("", "Mon-Fri", "Saturday", "Sunday"),
            ("First ferry", "06:10", "07:40", "08:40"),
            ("", "07:40", "09:10", "10:10"),
            ("", "09:10", "10:40", "11:40"),
            ("", "11:40", "12:10", "13:10"),
            ("", "13:40", "14:10", "14:40"),
            ("", "15:10", "16:10", "16:10"),
            ("", "16:40", "18:10", "17:40"),
            ("", "18:10", "19:40", ""),
            ("Last ferry", "20:40", "22:10", "19:10"),
        ],
        (MARGIN, 290, 430, 560),
        step=36,
    )
    page.paragraph("Back from Gull Island: 50 minutes after each of these times.")
    page.paragraph("No ferry in a storm of force 9 or more. Ask 555 0160 before you leave.")
    return page


def recipe() -> Page:
    page = Page("Shortbread")
    page.paragraph("For about 24 fingers. 15 minutes of work, 40 minutes in the oven.")
    page.heading("You need")
    for item in ("250 g butter, soft", "120 g sugar", "360 g flour", "a pinch of salt", "sugar to sprinkle"):
        page.draw.ellipse((MARGIN + 4, page.y + 6, MARGIN + 10, page.y + 12), fill=INK)
        page.text(MARGIN + 22, page.y, item)
        page.y += 26
    page.y += 10
    page.heading("How to make it")
    steps = (
        "Heat the oven to 160 degrees. Stir butter and sugar until they are pale.",
        "Work in flour and salt with your fingers, only until the dough holds together.",
        "Press it into a tin of 20 by 30 cm, cut it into fingers, and prick each three times with a fork.",
        "Bake until the edges are light gold. It must not turn brown.",
        "Cut it again while it is hot, sprinkle it with sugar, and let it cool in the tin.",
    )
    for number, step in enumerate(steps, 1):
        page.paragraph(f"{number}. {step}")
    page.paragraph("In a tin with a lid it keeps for three weeks.")
    for finger in range(6):
        x = MARGIN + 80 * finger
        page.draw.rounded_rectangle((x, 720, x + 62, 790), 8, fill=SAND, outline=GREY)
        for hole in range(3):
            page.draw.ellipse((x + 28, 734 + 18 * hole, x + 34, 740 + 18 * hole), fill=GREY)
    return page


def electricity() -> Page:
    page = Page("Where our electricity comes from")
    page.paragraph("Linden Municipal Energy, shares of all electricity supplied last year.")
    shares = (
        ("Wind", 41, BLUE),
        ("Gas", 24, GREY),
        ("Water", 17, "#7fb2d9"),
        ("Sun", 12, "#e3b23c"),
        ("Other", 6, PALE),
    )
    box, start = (130, page.y + 20, 490, page.y + 380), -90.0
    for number, (name, share, color) in enumerate(shares):
        end = start + 3.6 * share
        page.draw.pieslice(box, start, end, fill=color, outline="white", width=2)
        y = box[3] + 30 + 30 * number
        page.draw.rectangle((200, y, 218, y + 18), fill=color)
        page.text(232, y + 1, name)
        page.text(420, y + 1, f"{share} %", anchor="ra")
        start = end
    page.y = int(box[3]) + 200
    page.paragraph("A kilowatt hour caused 118 grams of carbon dioxide, 9 grams less than the year before.")
    return page


PAGES: dict[str, Callable[[], Page]] = {
    "notice": notice,
    "article": article,
    "rainfall": rainfall,
    "passengers": passengers,
    "flood": flood,
    "form": form,
    "invoice": invoice,
    "map": town_map,
    "newspaper": newspaper,
    "timetable": timetable,
    "recipe": recipe,
    "electricity": electricity,
}

# what is asked, and how far pages answer it: 2 entirely, 1 in part, 0 not, though they look as if they might
QUERIES: dict[str, dict[str, int]] = {
    "When does the last ferry to Gull Island leave on a Sunday?": {"timetable": 2, "passengers": 0, "newspaper": 0},
    "In which month did most people take the ferry?": {"passengers": 2, "timetable": 0, "rainfall": 0},
    "How much rain falls on High Moor in October?": {"rainfall": 2, "flood": 0, "newspaper": 0},
    "On which day was the river at its highest?": {"flood": 2, "rainfall": 0, "map": 0},
    "How do honeybees get through the winter?": {"article": 2, "recipe": 0, "newspaper": 0},
    "What did the repair of the boiler cost?": {"invoice": 2, "notice": 0, "electricity": 0},
    "How do I get a library card?": {"form": 2, "newspaper": 1, "map": 0},
    "How do I walk from the station to the museum?": {"map": 2, "notice": 0, "timetable": 0},
    "How much butter goes into shortbread?": {"recipe": 2, "article": 0, "invoice": 0},
    "What share of the electricity comes from wind?": {"electricity": 2, "newspaper": 1, "passengers": 0},
}


def write_lines(path: Path, rows: Sequence[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def main(folder: Path) -> None:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images = {name: f"images/{name}.png" for name in PAGES}
    for name, draw in PAGES.items():
        # 16 colours are enough, and half a byte a pixel
        sheet = draw().image.quantize(16, dither=Image.Dither.NONE)
        sheet.save(folder / images[name], optimize=True)
    queries = [(f"q{number:02}", query) for number, query in enumerate(QUERIES, 1)]
    judged = [(query, images[page], gain) for query, gains in QUERIES.items() for page, gain in gains.items()]
    write_lines(folder / "pages.jsonl", [{"id": name, "image": image} for name, image in images.items()])
    write_lines(folder / "queries.jsonl", [{"id": id_, "query": query} for id_, query in queries])
    write_lines(
        folder / "pairs.jsonl", [{"query": query, "image": image, "label": gain} for query, image, gain in judged]
    )
    candidates = [
        {"query_id": id_, "query": query, "document_id": name, "image": image}
        for id_, query in queries
        for name, image in images.items()
    ]
    write_lines(folder / "candidates.jsonl", candidates)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
