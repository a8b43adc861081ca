"""Sentences of clinical notes with one identifier each, in the forms that people write them."""

from datetime import date, timedelta

MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August"]
MONTHS += ["September", "October", "November", "December"]
STATES = ["MA", "NY", "CA", "TX", "FL", "OH", "WA", "IL", "PA", "GA", "CO", "AZ"]


def digits(rng, count):
    return "".join(rng.choice("0123456789") for _ in range(count))


def letters(rng, count, of="ABCDEFGHJKLMNPRSTUVWXYZ"):
    return "".join(rng.choice(of) for _ in range(count))


def a_date(rng):
    day = date(1931, 1, 1) + timedelta(rng.randrange(34_000))
    month = MONTHS[day.month - 1]
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(day.day % 10 if day.day not in (11, 12, 13) else 0, "th")
    return rng.choice(
        [
            day.isoformat(),
            f"{day.month}/{day.day}/{day.year}",
            f"{day.month:02d}/{day.day:02d}/{day.year % 100:02d}",
            f"{day.month:02d}-{day.day:02d}-{day.year}",
            f"{day.day}.{day.month}.{day.year}",
            f"{month} {day.day}, {day.year}",
            f"{month[:3]} {day.day}, {day.year}",
            f"{day.day} {month} {day.year}",
            f"{month} {day.day}{suffix}",
            f"the {day.day}{suffix} of {month} {day.year}",
            f"{day.day}-{month[:3]}-{day.year}",
            f"{month.upper()} {day.day}, {day.year}",
            f"{month} {day.year}",
            f"{day.year}/{day.month:02d}/{day.day:02d}",
        ]
    )


def a_number(rng):
    area, middle, last = f"{rng.randrange(201, 989)}", f"{rng.randrange(200, 999)}", digits(rng, 4)
    return rng.choice(
        [
            f"({area}) {middle}-{last}",
            f"{area}-{middle}-{last}",
            f"{area}.{middle}.{last}",
            f"{area} {middle} {last}",
            f"+1 {area} {middle} {last}",
            f"1-{area}-{middle}-{last}",
            f"+44 20 7{digits(rng, 3)} {digits(rng, 4)}",
            f"+49 {area} {digits(rng, 7)}",
        ]
    )


def an_url(rng):
    name = letters(rng, 8).lower()
    return rng.choice(
        [
            f"https://portal.{name}.org/chart?id={digits(rng, 5)}",
            f"http://{name}.net/",
            f"www.{name}-clinic.com",
            f"{name}.org/patients/{digits(rng, 4)}",
        ]
    )


def an_email(rng):
    name = letters(rng, 5).lower() + rng.choice([".", "_", "", "+"]) + letters(rng, 4).lower()
    return f"{name}@{letters(rng, 6).lower()}.{rng.choice(['com', 'org', 'co.uk', 'edu'])}"


def an_ip(rng):
    if rng.random() < 0.3:
        return ":".join(f"{rng.randrange(1, 65536):x}" for _ in range(8))
    return ".".join(str(rng.randrange(1, 255)) for _ in range(4))


def an_ssn(rng):
    first = rng.choice([n for n in range(1, 900) if n != 666])
    parts = f"{first:03d}", f"{rng.randrange(1, 100):02d}", f"{rng.randrange(1, 10_000):04d}"
    return rng.choice(["-".join(parts), " ".join(parts), f"SSN {''.join(parts)}"])


def an_age(rng):
    age = rng.randrange(90, 112)
    return rng.choice(
        [
            f"{age}-year-old",
            f"{age} years old",
            f"{age} year old",
            f"{age} yo",
            f"{age} y/o",
            f"{age}-yr-old",
            f"aged {age}",
            f"age {age}",
            f"age: {age}",
            f"{age} years of age",
        ]
    )


def coded(*forms):
    """A form with 0 for a digit and @ for a letter."""

    def make(rng):
        form = rng.choice(forms)
        return "".join({"0": rng.choice("0123456789"), "@": letters(rng, 1)}.get(mark, mark) for mark in form)

    return make


def a_vin(rng):
    return (
        letters(rng, 1)
        + "".join(letters(rng, 1, "ABCDEFGHJKLMNPRSTUVWXYZ0123456789") for _ in range(10))
        + digits(rng, 6)
    )


def a_plate(rng):
    return coded("license plate @@@-0000", "plate number 000 @@@", "licence plate @@00 @@@", "plate: @@@0000")(rng)


def a_birth_date(rng):
    day = f"{rng.randint(1, 12)}/{rng.randint(1, 28)}/{rng.randint(1930, 2015)}"
    return rng.choice(["born on ", "DOB: ", "date of birth ", "birthday "]) + day


def a_name(rng):
    first, last = (
        rng.choice(["Jane", "Oliver", "Amélie", "Sean"]),
        rng.choice(["Miller", "O'Neil", "Okafor", "Haas-Lind"]),
    )
    return rng.choice([f"my name is {first} {last}", f"name: {first} {last}", f"Mrs. {last}", f"Mr {first} {last}"])


def an_address(rng):
    street = rng.choice(["High", "Maple", "Old Mill", "Church"]) + rng.choice([" Street", " Road", " Ave", " Lane"])
    return rng.choice(
        [f"{rng.randint(1, 999)} {street}", f"{rng.randint(1, 99)}b {street}", f"SW{rng.randint(1, 9)}A 2AA"]
    )


MAKERS = {
    "birth_date": a_birth_date,
    "name": a_name,
    "address": an_address,
    "date": a_date,
    "telephone": a_number,
    "fax": lambda rng: rng.choice(["fax ", "Fax: ", "fax number ", "FAX no. "]) + a_number(rng),
    "email": an_email,
    "ssn": an_ssn,
    "mrn": coded(
        "MRN 00000000", "MRN: 000000", "MRN# @@-0000000", "medical record number 0000000", "patient ID @000000"
    ),
    "health_plan": coded(
        "member ID @@@000000000", "policy number 0000000000", "Medicare no. 0@@0-@@0-@@00", "group number 00000"
    ),
    "account": coded(
        "account number 0000000000", "acct # 00000000", "card 0000-0000-0000-0000", "account no. @@000000"
    ),
    "licence": coded(
        "license number @0000000",
        "DEA @@0000000",
        "NPI 0000000000",
        "driver's license @00000000",
        "certificate no. 000000",
    ),
    "device": coded(
        "serial number @@@000000",
        "S/N 0000000000",
        "pacemaker serial no. @@000000",
        "device ID 0000-0000-00",
        "lot number @0000",
    ),
    "vehicle": lambda rng: rng.choice([a_vin, a_plate])(rng),
    "url": an_url,
    "ip": an_ip,
    "zip": lambda rng: rng.choice(
        [
            f"{rng.choice(STATES)} {digits(rng, 5)}",
            f"{digits(rng, 5)}-{digits(rng, 4)}",
            f"ZIP {digits(rng, 5)}",
            f"zip code: {digits(rng, 5)}",
        ]
    ),
    "age": an_age,
}
BEFORE = ["Seen today,", "The patient reports", "According to the note:", "Mother says", "Her chart shows", "Plan, see"]
AFTER = [
    "and was sent home.",
    "as before.",
    ", then follow-up in 2 weeks with 20 mg daily.",
    "(confirmed).",
    "; no fever, 3 days of cough.",
    ".",
]


def sentence(kind, rng):
    """A sentence and the identifier of this kind in it."""
    found = MAKERS[kind](rng)
    return f"{rng.choice(BEFORE)} {found} {rng.choice(AFTER)}", found
