"""Names, words and invented words that conversations are filled with."""

from random import Random

from scripts.bundled_model.words import phrases, words

PEOPLE = words("""
    Ana Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olivia Paul Rosa Sam
    Tina Victor Alice Bob Carol Daniel Eva Frank George Hannah Ivan Julia Karl Laura Maria Nina
    Oscar Peter Quentin Ruth Simon Tom Ursula Wendy Yuki Zoe Adam Anna Carlos Diana Elena Fatima
    Gabriel Hugo Ines Jamal Kenji Lena Marco Nadia Omar Priya Ravi Sara Theo Uma Vera Wei Ximena
    Yusuf Zara John Mary James Linda Robert Lucy Michael Susan William Sarah Thomas Jessica
    Charles Karen Chris Lisa Mark Nancy Steven Betty Andrew Helen Joshua Sandra Kevin Ashley Brian
    Emily Edward Amy Ronald Angela Jason Melissa Ryan Rebecca Eric Michelle Alex Max Lukas Sofia
    Mateo Chloe Liam Ava Ethan Ella Lily Aisha Hassan Mei Chen Aarav Ananya Kofi Amara
""")

CITIES = phrases("""
    Paris; London; Berlin; Madrid; Rome; Lisbon; Vienna; Prague; Dublin; Oslo; Stockholm; Helsinki
    Athens; Budapest; Warsaw; Brussels; Amsterdam; Copenhagen; Zurich; Geneva; Munich; Hamburg
    Milan; Naples; Venice; Florence; Barcelona; Seville; Valencia; Porto; Lyon; Marseille; Nice
    Bordeaux; Manchester; Liverpool; Leeds; Glasgow; Edinburgh; Cardiff; Istanbul; Ankara; Moscow
    Kyiv; Tokyo; Osaka; Kyoto; Seoul; Busan; Beijing; Shanghai; Hong Kong; Taipei; Bangkok; Hanoi
    Singapore; Jakarta; Manila; Delhi; New Delhi; Mumbai; Chennai; Kolkata; Karachi; Lahore; Dhaka
    Kathmandu; Tehran; Baghdad; Riyadh; Dubai; Doha; Jerusalem; Tel Aviv; Cairo; Lagos; Nairobi
    Accra; Cape Town; Johannesburg; Casablanca; Tunis; New York; Los Angeles; Chicago; Boston
    Houston; Dallas; Miami; Seattle; Denver; Phoenix; San Francisco; San Diego; Las Vegas; Atlanta
    Detroit; Portland; Austin; Philadelphia; Washington; Toronto; Montreal; Vancouver; Ottawa
    Mexico City; Havana; Bogota; Lima; Quito; Santiago; Buenos Aires; Montevideo; Rio de Janeiro
    Sao Paulo; Brasilia; Sydney; Melbourne; Brisbane; Perth; Auckland; Wellington; Honolulu
    Reykjavik; Salzburg; Bruges; Krakow; Riga; Tallinn; Vilnius
""")

COLORS = words("red blue green yellow black white brown gray purple orange pink silver golden")
ANIMALS = words(
    "cat dog horse rabbit parrot hamster turtle goat duck sheep fox bear owl mouse lion"
)
ITEMS = words("""
    key book lamp bag box umbrella camera bottle notebook hat coat ticket map cup pen phone letter
    ring watch basket violin bicycle tent ladder blanket clock kettle plate scarf wallet guitar
    suitcase
""")
SPOTS = phrases("""
    kitchen drawer; garden shed; top shelf; blue cupboard; hall closet; living room; bedroom
    attic; basement; garage; office; library; glove box; front pocket; wooden chest; school bag
    laundry room; desk drawer; green box; car; cellar; dining room; barn; kitchen; bathroom
    old trunk
""")
JOBS = words("""
    teacher doctor baker farmer pilot nurse painter lawyer engineer writer gardener carpenter
    singer dentist librarian driver plumber scientist chef musician
""")
FOODS = words(
    "pizza pasta soup rice bread cheese salad cake fish curry chocolate sushi pancakes noodles"
)
HOBBIES = words(
    "chess tennis painting reading swimming hiking dancing cooking fishing singing cycling"
)
WORDS = words("""
    apple river stone cloud tiger window pencil garden music silver rocket banana winter mirror
    planet butter candle forest bridge yellow dragon castle marble pepper button engine carpet
    lemon island thunder velvet copper feather harbor jungle kitten ladder magnet needle orange
    pillow quartz rabbit saddle tunnel violet walnut zebra anchor basket cactus desert eagle
    falcon guitar hammer iron jacket kettle lantern meadow nest ocean parrot queen ribbon shadow
    temple urgent valley whisper the a quickly slowly and with under near happy sad old new bright
    dark small large soft loud seven three blue green runs sings jumps sleeps falls
""")

ONSETS = words("b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr sh sl st th tr")
VOWELS = words("a e i o u a e i o ai ea ou")
CODAS = ["", "", "", "n", "r", "l", "s", "m", "t", "k", "nd", "x"]


def invented(rng: Random, low: int = 2, high: int = 3) -> str:
    """A pronounceable lower-case word of low to high syllables that means nothing."""
    syllables = rng.randint(low, high)
    parts = (rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(syllables))
    return "".join(parts) + rng.choice(CODAS)


def person(rng: Random) -> str:
    """A first name, one in three of them invented."""
    return invented(rng).capitalize() if rng.random() < 0.33 else rng.choice(PEOPLE)


def city(rng: Random) -> str:
    """A city, half of them invented, some of two words."""
    if rng.random() < 0.5:
        return rng.choice(CITIES)
    name = invented(rng).capitalize()
    if rng.random() < 0.2:
        name = f"{rng.choice(['New', 'Port', 'San', 'Saint', 'Lake', 'North', 'Old'])} {name}"
    return name


def digits(rng: Random, low: int, high: int) -> str:
    """low to high random digits, the first not zero."""
    length = rng.randint(low, high)
    return str(rng.randint(10 ** (length - 1), 10**length - 1))
