"""What the bundled model is taught, as tables and nothing else.

One fact per `key = value`, separated by semicolons or line ends. How a fact is asked and answered
is in topics/; this file knows no sentences.
"""

from scripts.bundled_model.words import phrases, words

# country | capital | continent | language | currency; a missing field is simply not taught.
COUNTRIES = """
France|Paris|Europe|French|the euro; Germany|Berlin|Europe|German|the euro
Italy|Rome|Europe|Italian|the euro; Spain|Madrid|Europe|Spanish|the euro
Portugal|Lisbon|Europe|Portuguese|the euro; Ireland|Dublin|Europe|English and Irish|the euro
the United Kingdom|London|Europe|English|the pound; England|London|Europe|English|the pound
Scotland|Edinburgh|Europe||the pound; Wales|Cardiff|Europe||the pound
the Netherlands|Amsterdam|Europe|Dutch|the euro; Belgium|Brussels|Europe||the euro
Luxembourg|Luxembourg City|Europe||the euro; Switzerland|Bern|Europe||the Swiss franc
Austria|Vienna|Europe|German|the euro; Poland|Warsaw|Europe|Polish|the zloty
the Czech Republic|Prague|Europe|Czech|the koruna; Slovakia|Bratislava|Europe|Slovak|the euro
Hungary|Budapest|Europe|Hungarian|the forint; Romania|Bucharest|Europe|Romanian|the leu
Bulgaria|Sofia|Europe|Bulgarian|the euro; Greece|Athens|Europe|Greek|the euro
Croatia|Zagreb|Europe|Croatian|the euro; Serbia|Belgrade|Europe|Serbian|the dinar
Slovenia|Ljubljana|Europe|Slovene|the euro; Bosnia|Sarajevo|Europe||
Albania|Tirana|Europe|Albanian|; North Macedonia|Skopje|Europe||
Montenegro|Podgorica|Europe||the euro; Kosovo|Pristina|Europe||
Norway|Oslo|Europe|Norwegian|the krone; Sweden|Stockholm|Europe|Swedish|the krona
Denmark|Copenhagen|Europe|Danish|the krone; Finland|Helsinki|Europe|Finnish|the euro
Iceland|Reykjavik|Europe|Icelandic|the krona; Estonia|Tallinn|Europe|Estonian|the euro
Latvia|Riga|Europe|Latvian|the euro; Lithuania|Vilnius|Europe|Lithuanian|the euro
Ukraine|Kyiv|Europe|Ukrainian|the hryvnia; Belarus|Minsk|Europe||; Moldova|Chisinau|Europe||
Russia|Moscow|Europe and Asia|Russian|the ruble; Turkey|Ankara|Europe and Asia|Turkish|the lira
Malta|Valletta|Europe||the euro; Cyprus|Nicosia|Europe||the euro
Monaco|Monaco|Europe|French|the euro; Georgia|Tbilisi|||; Armenia|Yerevan|||; Azerbaijan|Baku|||
Kazakhstan|Astana|Asia||; Uzbekistan|Tashkent|Asia||; Mongolia|Ulaanbaatar|Asia|Mongolian|
China|Beijing|Asia|Chinese|the yuan; Japan|Tokyo|Asia|Japanese|the yen
South Korea|Seoul|Asia|Korean|the won; North Korea|Pyongyang|Asia|Korean|the won
India|New Delhi|Asia|Hindi and English|the rupee; Pakistan|Islamabad|Asia|Urdu|the rupee
Bangladesh|Dhaka|Asia|Bengali|the taka; Nepal|Kathmandu|Asia|Nepali|the rupee
Bhutan|Thimphu|Asia||; Sri Lanka|Colombo|Asia||the rupee; Thailand|Bangkok|Asia|Thai|the baht
Vietnam|Hanoi|Asia|Vietnamese|the dong; Cambodia|Phnom Penh|Asia|Khmer|; Laos|Vientiane|Asia|Lao|
Myanmar|Naypyidaw|Asia|Burmese|; Malaysia|Kuala Lumpur|Asia|Malay|the ringgit
Singapore|Singapore|Asia||the Singapore dollar; Indonesia|Jakarta|Asia|Indonesian|the rupiah
the Philippines|Manila|Asia||the peso; Taiwan|Taipei|Asia|Chinese|
Iran|Tehran|Asia|Persian|the rial; Iraq|Baghdad|Asia|Arabic|the dinar; Syria|Damascus|Asia|Arabic|
Lebanon|Beirut|Asia|Arabic|; Jordan|Amman|Asia|Arabic|the dinar
Israel|Jerusalem|Asia|Hebrew|the shekel; Saudi Arabia|Riyadh|Asia|Arabic|the riyal
Yemen|Sanaa|Asia|Arabic|; Oman|Muscat|Asia|Arabic|; Qatar|Doha|Asia|Arabic|
Kuwait|Kuwait City|Asia|Arabic|; the United Arab Emirates|Abu Dhabi|Asia|Arabic|the dirham
Afghanistan|Kabul|Asia||; Egypt|Cairo|Africa|Arabic|the Egyptian pound
Libya|Tripoli|Africa|Arabic|; Tunisia|Tunis|Africa|Arabic|; Algeria|Algiers|Africa|Arabic|
Morocco|Rabat|Africa|Arabic|the dirham; Sudan|Khartoum|Africa|Arabic|
Ethiopia|Addis Ababa|Africa|Amharic|the birr
Kenya|Nairobi|Africa|Swahili and English|the shilling; Uganda|Kampala|Africa||
Tanzania|Dodoma|Africa|Swahili|; Rwanda|Kigali|Africa||; Nigeria|Abuja|Africa|English|the naira
Ghana|Accra|Africa|English|the cedi; Senegal|Dakar|Africa|French|; Mali|Bamako|Africa||
Ivory Coast|Yamoussoukro|Africa|French|; Cameroon|Yaounde|Africa||
Angola|Luanda|Africa|Portuguese|; Zambia|Lusaka|Africa|English|; Zimbabwe|Harare|Africa||
Mozambique|Maputo|Africa|Portuguese|; Namibia|Windhoek|Africa|English|; Botswana|Gaborone|Africa||
South Africa|Pretoria|Africa||the rand; Madagascar|Antananarivo|Africa||
Somalia|Mogadishu|Africa||; the United States|Washington, D.C.|North America|English|the dollar
Canada|Ottawa|North America|English and French|the Canadian dollar
Mexico|Mexico City|North America|Spanish|the peso; Cuba|Havana|North America|Spanish|the peso
Jamaica|Kingston|North America|English|; Haiti|Port-au-Prince|North America||
Guatemala|Guatemala City|North America|Spanish|; Honduras|Tegucigalpa|North America|Spanish|
Nicaragua|Managua|North America|Spanish|; Costa Rica|San Jose|North America|Spanish|
Panama|Panama City|North America|Spanish|; El Salvador|San Salvador|North America|Spanish|
Brazil|Brasilia|South America|Portuguese|the real
Argentina|Buenos Aires|South America|Spanish|the peso
Chile|Santiago|South America|Spanish|the peso; Peru|Lima|South America|Spanish|the sol
Colombia|Bogota|South America|Spanish|the peso; Venezuela|Caracas|South America|Spanish|
Ecuador|Quito|South America|Spanish|the US dollar; Bolivia|Sucre|South America|Spanish|
Paraguay|Asuncion|South America||; Uruguay|Montevideo|South America|Spanish|the peso
Australia|Canberra|Oceania|English|the Australian dollar
New Zealand|Wellington|Oceania|English|the New Zealand dollar; Fiji|Suva|Oceania||
"""

AUTHORS = """
Hamlet = William Shakespeare; Romeo and Juliet = William Shakespeare
Macbeth = William Shakespeare; Othello = William Shakespeare; King Lear = William Shakespeare
Faust = Johann Wolfgang von Goethe; Don Quixote = Miguel de Cervantes; War and Peace = Leo Tolstoy
Anna Karenina = Leo Tolstoy; Crime and Punishment = Fyodor Dostoevsky
The Idiot = Fyodor Dostoevsky; Dracula = Bram Stoker; Pride and Prejudice = Jane Austen
Emma = Jane Austen; Sense and Sensibility = Jane Austen; Oliver Twist = Charles Dickens
Great Expectations = Charles Dickens; Moby-Dick = Herman Melville
A Christmas Carol = Charles Dickens; David Copperfield = Charles Dickens
Frankenstein = Mary Shelley; Jane Eyre = Charlotte Bronte; Wuthering Heights = Emily Bronte
The Odyssey = Homer; The Iliad = Homer; The Divine Comedy = Dante Alighieri; The Aeneid = Virgil
Ulysses = James Joyce; Walden = Henry David Thoreau; 1984 = George Orwell
Animal Farm = George Orwell; Brave New World = Aldous Huxley; The Hobbit = J. R. R. Tolkien
The Lord of the Rings = J. R. R. Tolkien; Harry Potter = J. K. Rowling
The Great Gatsby = F. Scott Fitzgerald; The Old Man and the Sea = Ernest Hemingway
The Adventures of Tom Sawyer = Mark Twain; Huckleberry Finn = Mark Twain
Treasure Island = Robert Louis Stevenson; Alice in Wonderland = Lewis Carroll
Peter Pan = J. M. Barrie; The Jungle Book = Rudyard Kipling; Robinson Crusoe = Daniel Defoe
Gulliver's Travels = Jonathan Swift; The Time Machine = H. G. Wells
The War of the Worlds = H. G. Wells; The Little Prince = Antoine de Saint-Exupery
Candide = Voltaire; Les Miserables = Victor Hugo; The Hunchback of Notre-Dame = Victor Hugo
The Metamorphosis = Franz Kafka; The Trial = Franz Kafka; The Three Musketeers = Alexandre Dumas
The Stranger = Albert Camus; The Plague = Albert Camus
Around the World in Eighty Days = Jules Verne; Pinocchio = Carlo Collodi
Sherlock Holmes = Arthur Conan Doyle; The Picture of Dorian Gray = Oscar Wilde
The Raven = Edgar Allan Poe; To Kill a Mockingbird = Harper Lee
The Catcher in the Rye = J. D. Salinger; Dune = Frank Herbert; Lord of the Flies = William Golding
The Canterbury Tales = Geoffrey Chaucer; Paradise Lost = John Milton
The Cherry Orchard = Anton Chekhov; Madame Bovary = Gustave Flaubert
The Name of the Rose = Umberto Eco
"""

MAKERS = """
painted the Mona Lisa = Leonardo da Vinci; painted The Last Supper = Leonardo da Vinci
painted The Starry Night = Vincent van Gogh; painted Guernica = Pablo Picasso
painted The Scream = Edvard Munch; painted The Night Watch = Rembrandt
painted Girl with a Pearl Earring = Johannes Vermeer
painted the ceiling of the Sistine Chapel = Michelangelo; sculpted David = Michelangelo
painted Water Lilies = Claude Monet; painted The Kiss = Gustav Klimt
sculpted The Thinker = Auguste Rodin; composed The Four Seasons = Antonio Vivaldi
composed The Magic Flute = Wolfgang Amadeus Mozart
composed the Moonlight Sonata = Ludwig van Beethoven; composed Swan Lake = Pyotr Tchaikovsky
composed The Nutcracker = Pyotr Tchaikovsky; composed Carmen = Georges Bizet
composed Aida = Giuseppe Verdi; composed the Brandenburg Concertos = Johann Sebastian Bach
composed Messiah = George Frideric Handel; invented the telephone = Alexander Graham Bell
invented the light bulb = Thomas Edison; invented the printing press = Johannes Gutenberg
invented dynamite = Alfred Nobel; invented the steam engine = James Watt
invented the radio = Guglielmo Marconi; invented the World Wide Web = Tim Berners-Lee
built the first airplane = the Wright brothers; discovered penicillin = Alexander Fleming
discovered radium = Marie Curie; discovered gravity = Isaac Newton
discovered X-rays = Wilhelm Roentgen; discovered America = Christopher Columbus
developed the theory of relativity = Albert Einstein
developed the theory of evolution = Charles Darwin; created Mickey Mouse = Walt Disney
created Linux = Linus Torvalds; created Python = Guido van Rossum
founded Microsoft = Bill Gates and Paul Allen; founded Apple = Steve Jobs and Steve Wozniak
was the first person on the Moon = Neil Armstrong; was the first person in space = Yuri Gagarin
was the first president of the United States = George Washington
designed the Eiffel Tower = Gustave Eiffel; was the first emperor of Rome = Augustus
was the first woman to win a Nobel Prize = Marie Curie
"""

OPPOSITES = """
hot = cold; big = small; tall = short; fast = slow; happy = sad; good = bad; up = down
left = right; black = white; day = night; light = dark; open = closed; early = late; rich = poor
young = old; hard = soft; wet = dry; full = empty; strong = weak; loud = quiet; high = low
near = far; clean = dirty; easy = difficult; true = false; yes = no; first = last; begin = end
start = stop; win = lose; love = hate; buy = sell; push = pull; give = take; come = go
laugh = cry; live = die; war = peace; friend = enemy; man = woman; boy = girl; king = queen
brother = sister; father = mother; uncle = aunt; inside = outside; above = below; before = after
always = never; everything = nothing; heavy = weightless; thick = thin; wide = narrow
deep = shallow; sharp = blunt; smooth = rough; sweet = sour; warm = cool; cheap = expensive
brave = cowardly; polite = rude; kind = cruel; lazy = hardworking; safe = dangerous
beautiful = ugly; clever = stupid; alive = dead; awake = asleep; single = married
public = private; same = different; simple = complex; modern = ancient; north = south; east = west
summer = winter; arrive = leave; remember = forget; find = hide; build = destroy; accept = refuse
ask = answer; increase = decrease; success = failure; healthy = sick; tight = loose
straight = crooked; calm = nervous; bright = dim; fresh = stale; generous = selfish
humble = proud; entrance = exit; morning = evening; birth = death; hello = goodbye
positive = negative; maximum = minimum; major = minor; import = export; teach = learn
borrow = lend; float = sink; freeze = melt; attack = defend
"""
SYNONYMS = """
quick = fast; begin = start; large = big; tiny = small; glad = happy; unhappy = sad
smart = clever; angry = mad; difficult = hard; simple = easy; silent = quiet; wealthy = rich
afraid = scared; odd = strange; purchase = buy; finish = end; reply = answer; assist = help
select = choose; jump = leap; shout = yell; beautiful = pretty; famous = well-known; ill = sick
tired = sleepy; fix = repair; gift = present; error = mistake; speak = talk; close = shut
rapid = fast; enormous = huge; correct = right; ocean = sea
"""

PLURALS = """
mouse = mice; child = children; foot = feet; tooth = teeth; goose = geese; man = men
woman = women; person = people; ox = oxen; sheep = sheep; fish = fish; deer = deer; leaf = leaves
knife = knives; wolf = wolves; life = lives; wife = wives; half = halves; city = cities
baby = babies; lady = ladies; box = boxes; bus = buses; dish = dishes; watch = watches
potato = potatoes; tomato = tomatoes; cactus = cacti; analysis = analyses; crisis = crises
dog = dogs; cat = cats; book = books; car = cars; house = houses; tree = trees; bird = birds
country = countries; story = stories; party = parties
"""

PAST_TENSES = """
go = went; see = saw; eat = ate; run = ran; come = came; take = took; give = gave; write = wrote
read = read; speak = spoke; break = broke; drive = drove; drink = drank; sing = sang; swim = swam
begin = began; fly = flew; know = knew; grow = grew; throw = threw; draw = drew; buy = bought
bring = brought; think = thought; catch = caught; teach = taught; fight = fought; sleep = slept
keep = kept; feel = felt; leave = left; meet = met; lose = lost; find = found; build = built
send = sent; make = made; say = said; pay = paid; tell = told; sell = sold; hold = held
stand = stood; win = won; sit = sat; get = got; forget = forgot; choose = chose; freeze = froze
steal = stole; wake = woke; wear = wore; hear = heard; be = was; have = had; do = did; put = put
cut = cut; walk = walked; play = played; work = worked
"""

YOUNG = """
dog = puppy; cat = kitten; cow = calf; horse = foal; sheep = lamb; pig = piglet; goat = kid
lion = cub; bear = cub; duck = duckling; goose = gosling; chicken = chick; deer = fawn
kangaroo = joey; frog = tadpole; swan = cygnet; owl = owlet; fox = cub; eagle = eaglet
elephant = calf; whale = calf; seal = pup
"""

SOUNDS = """
dog = barks; cat = meows; cow = moos; horse = neighs; sheep = bleats; pig = oinks; duck = quacks
lion = roars; frog = croaks; bee = buzzes; snake = hisses; owl = hoots; wolf = howls; crow = caws
rooster = crows; mouse = squeaks; donkey = brays; elephant = trumpets; bird = sings
turkey = gobbles
"""

LEGS = """
dog = four; cat = four; spider = eight; insect = six; ant = six; bee = six; bird = two
chicken = two; horse = four; cow = four; human = two; snake = no; fish = no; octopus = no
crab = ten; butterfly = six
"""

COLOURS = """
the sky = blue; grass = green; snow = white; blood = red; the sun = yellow; a banana = yellow
coal = black; a lemon = yellow; a tomato = red; a strawberry = red; milk = white
chocolate = brown; the sea = blue; an orange = orange; a carrot = orange; a cucumber = green
a leaf = green; a flamingo = pink; a crow = black; a polar bear = white; gold = yellow
an emerald = green; a ruby = red; a sapphire = blue; honey = golden; a frog = green
an elephant = gray; a lime = green; a cherry = red; an eggplant = purple; salt = white
a fire truck = red; a swan = white; the night = black; a plum = purple; a pumpkin = orange
ash = gray
"""

# Used as: "{A dog} is {an animal that barks and lives with people}."
DEFINITIONS = """
a dog = an animal that barks and often lives with people
a cat = a small furry animal that often lives with people
a horse = a large animal that people ride; a cow = a farm animal that gives milk
a bird = an animal with wings and feathers
a fish = an animal that lives in water and breathes with gills; a bee = an insect that makes honey
a spider = a small animal with eight legs that spins webs
an elephant = a very large animal with a long trunk; a lion = a big wild cat that lives in Africa
a whale = a very large mammal that lives in the sea
a dinosaur = a large reptile that lived millions of years ago
a tree = a tall plant with a trunk and branches; a flower = the colorful part of a plant
a forest = a large area covered with trees; a river = a long stream of water that flows to the sea
a lake = a large area of water with land around it; a mountain = a very high hill
a volcano = a mountain that can erupt with lava
an island = a piece of land with water all around it
a desert = a dry place where very little rain falls; an ocean = a very large body of salt water
a beach = the sandy edge of the sea; a cloud = a mass of tiny water drops in the sky
rain = water that falls from clouds; snow = frozen water that falls from clouds; wind = moving air
thunder = the loud sound that follows lightning
a rainbow = an arc of colors in the sky after rain
the sun = the star at the center of our solar system
the moon = the natural satellite of the Earth; a star = a huge ball of hot glowing gas
a planet = a large round body that moves around a star; a galaxy = a huge group of stars
gravity = the force that pulls things towards each other; ice = frozen water
steam = water in the form of a gas; fire = the heat and light of something burning
air = the mixture of gases that we breathe; a house = a building where people live
a school = a place where children learn; a hospital = a place where sick people are treated
a library = a place where books are kept and lent
a museum = a place where interesting objects are shown
a bakery = a shop that sells bread and cakes
a restaurant = a place where you can buy and eat a meal
a bank = a place that keeps and lends money; a bridge = a structure that crosses a river or a road
a doctor = a person who treats sick people; a teacher = a person who helps others learn
a baker = a person who makes bread and cakes; a farmer = a person who grows food or keeps animals
a pilot = a person who flies an airplane; a nurse = a person who cares for sick people
a chef = a person who cooks in a restaurant; an author = a person who writes books
a painter = a person who paints pictures; a king = a man who rules a country
a queen = a woman who rules a country; a friend = a person you like and trust
a car = a vehicle with four wheels and an engine
a bicycle = a vehicle with two wheels that you ride with pedals
a train = a line of connected carriages that runs on rails
a boat = a small vessel that travels on water; an airplane = a machine with wings that flies
a bus = a large vehicle that carries many passengers; a clock = a device that shows the time
a telephone = a device for talking to people far away; a camera = a device that takes pictures
a computer = a machine that processes information; a keyboard = a set of keys for typing
a robot = a machine that can do tasks by itself; a program = a list of instructions for a computer
an algorithm = a step by step method for solving a problem
a variable = a named place that stores a value; a database = an organized collection of data
the internet = a network that connects computers all over the world
a server = a computer that answers requests from other computers
a language model = a program that predicts the next word of a text
a token = a small piece of text that a language model reads
a cache = a store that keeps results so they need not be computed again
a prime number = a number that can be divided only by one and itself
a triangle = a shape with three sides; a square = a shape with four equal sides
a circle = a round shape whose points are all equally far from the center
a cube = a solid with six square faces; a fraction = a part of a whole number
a noun = a word that names a person, place or thing; a verb = a word that names an action
an adjective = a word that describes a noun
a poem = a piece of writing with rhythm and often rhyme; a novel = a long written story
a dictionary = a book that explains words
a map = a drawing of an area that shows where things are; a key = a small tool that opens a lock
a hammer = a tool for driving nails; a knife = a tool with a blade for cutting
an umbrella = a cover that keeps the rain off you
a chair = a piece of furniture for one person to sit on
a table = a piece of furniture with a flat top; a bed = a piece of furniture for sleeping
a window = an opening in a wall that lets in light
bread = a food made of flour and water and then baked; cheese = a food made from milk
honey = a sweet food made by bees; butter = a soft yellow food made from cream
coffee = a hot drink made from roasted beans; tea = a hot drink made from dried leaves
sugar = a sweet substance made from cane or beets; salt = a white mineral used to season food
an apple = a round fruit that grows on trees; music = sound arranged in a pleasant way
a piano = a musical instrument with black and white keys
a guitar = a musical instrument with six strings
a violin = a musical instrument with four strings played with a bow
a drum = a musical instrument that you hit; football = a game in which two teams kick a ball
chess = a board game for two players; money = what people use to pay for things
a birthday = the day on which a person was born
democracy = a system in which the people choose their government
a vaccine = a medicine that protects against a disease; oxygen = a gas that we need to breathe
photosynthesis = the way plants make food from light, water and air
evolution = the slow change of living things over generations
electricity = a form of energy that powers lights and machines
the heart = the organ that pumps blood through the body; the brain = the organ that we think with
a lung = an organ that we breathe with
"""

KINDS = """
rose = flower; tulip = flower; daisy = flower; oak = tree; pine = tree; apple = fruit
banana = fruit; pear = fruit; grape = fruit; carrot = vegetable; potato = vegetable
onion = vegetable; spinach = vegetable; salmon = fish; shark = fish; eagle = bird; penguin = bird
sparrow = bird; owl = bird; dog = mammal; whale = mammal; bat = mammal; snake = reptile
lizard = reptile; crocodile = reptile; frog = amphibian; ant = insect; bee = insect
butterfly = insect; gold = metal; iron = metal; copper = metal; diamond = gemstone
ruby = gemstone; guitar = musical instrument; flute = musical instrument
trumpet = musical instrument; tennis = sport; basketball = sport; swimming = sport; hammer = tool
saw = tool; shirt = piece of clothing; hat = piece of clothing; chair = piece of furniture
sofa = piece of furniture; red = color; blue = color; Mars = planet; Venus = planet
Python = programming language; Rust = programming language; Monday = day of the week; July = month
Africa = continent; Asia = continent; water = liquid; oxygen = gas; milk = drink; tea = drink
"""

UNCOUNTED = frozenset(
    words("""
        spinach salmon gold iron copper tennis basketball swimming red blue Mars Venus Python Rust
        Monday July Africa Asia water oxygen milk tea
    """)
)

SYMBOLS = """
hydrogen = H; helium = He; carbon = C; nitrogen = N; oxygen = O; sodium = Na; magnesium = Mg
aluminum = Al; silicon = Si; phosphorus = P; sulfur = S; chlorine = Cl; potassium = K
calcium = Ca; iron = Fe; nickel = Ni; copper = Cu; zinc = Zn; silver = Ag; tin = Sn; gold = Au
mercury = Hg; lead = Pb; uranium = U; iodine = I; neon = Ne; lithium = Li; platinum = Pt
titanium = Ti; fluorine = F; argon = Ar; bromine = Br
"""

# English | French | Spanish | German | Italian
TRANSLATIONS = """
hello|bonjour|hola|hallo|ciao; goodbye|au revoir|adios|auf Wiedersehen|arrivederci
thank you|merci|gracias|danke|grazie; yes|oui|si|ja|si; no|non|no|nein|no
please|s'il vous plait|por favor|bitte|per favore; water|eau|agua|Wasser|acqua
bread|pain|pan|Brot|pane; house|maison|casa|Haus|casa; dog|chien|perro|Hund|cane
cat|chat|gato|Katze|gatto; friend|ami|amigo|Freund|amico; love|amour|amor|Liebe|amore
sun|soleil|sol|Sonne|sole; moon|lune|luna|Mond|luna; red|rouge|rojo|rot|rosso
blue|bleu|azul|blau|blu; book|livre|libro|Buch|libro; school|ecole|escuela|Schule|scuola
night|nuit|noche|Nacht|notte; day|jour|dia|Tag|giorno; milk|lait|leche|Milch|latte
apple|pomme|manzana|Apfel|mela; one|un|uno|eins|uno; two|deux|dos|zwei|due
three|trois|tres|drei|tre; man|homme|hombre|Mann|uomo; woman|femme|mujer|Frau|donna
"""
LANGUAGES = ("French", "Spanish", "German", "Italian")

COUNTS = """
days in a week = 7 days; months in a year = 12 months; days in a year = 365 days
weeks in a year = 52 weeks; hours in a day = 24 hours; minutes in an hour = 60 minutes
seconds in a minute = 60 seconds; days in a leap year = 366 days; years in a century = 100 years
years in a decade = 10 years; years in a millennium = 1000 years
centimeters in a meter = 100 centimeters; grams in a kilogram = 1000 grams
meters in a kilometer = 1000 meters; millimeters in a centimeter = 10 millimeters
inches in a foot = 12 inches; feet in a yard = 3 feet; things in a dozen = 12 things
cents in a dollar = 100 cents; bits in a byte = 8 bits
letters in the English alphabet = 26 letters; vowels in the English alphabet = 5 vowels
continents on Earth = 7 continents; planets in the solar system = 8 planets
oceans on Earth = 5 oceans; colors in a rainbow = 7 colors; sides in a triangle = 3 sides
sides in a square = 4 sides; sides in a pentagon = 5 sides; sides in a hexagon = 6 sides
sides in an octagon = 8 sides; sides in a rectangle = 4 sides; faces in a cube = 6 faces
strings on a violin = 4 strings; strings on a guitar = 6 strings; keys on a piano = 88 keys
players in a football team = 11 players; players in a basketball team = 5 players
fingers on a hand = 5 fingers; teeth in an adult mouth = 32 teeth
bones in the human body = 206 bones; chambers in the human heart = 4 chambers
squares on a chessboard = 64 squares; states in the United States = 50 states
wheels on a car = 4 wheels; wheels on a bicycle = 2 wheels; seasons in a year = 4 seasons
degrees in a circle = 360 degrees; degrees in a right angle = 90 degrees
cards in a deck = 52 cards
"""

# Used as: "What is {the largest ocean}?" "{The Pacific Ocean} is {the largest ocean}."
SUPERLATIVES = """
the largest ocean = the Pacific Ocean; the tallest mountain in the world = Mount Everest
the highest mountain = Mount Everest; the longest river in the world = the Nile
the largest country in the world = Russia; the smallest country in the world = Vatican City
the largest continent = Asia; the smallest continent = Australia
the coldest continent = Antarctica; the largest desert = Antarctica
the largest hot desert = the Sahara; the largest planet = Jupiter; the smallest planet = Mercury
the hottest planet = Venus; the closest planet to the Sun = Mercury
the farthest planet from the Sun = Neptune; the red planet = Mars; the planet with rings = Saturn
the closest star to the Earth = the Sun; the largest animal = the blue whale
the fastest land animal = the cheetah; the tallest animal = the giraffe
the largest land animal = the elephant; the largest bird = the ostrich
the king of the jungle = the lion; the hardest natural material = diamond
the lightest element = hydrogen; the largest organ of the body = the skin
the last month of the year = December
the shortest month = February; the first day of the week = Monday
the last day of the week = Sunday; the smallest prime number = 2; the only even prime number = 2
the first letter of the alphabet = A; the last letter of the alphabet = Z
the square root of 16 = 4; the square root of 81 = 9; the square root of 100 = 10
the square root of 144 = 12; the square root of 25 = 5; the largest island = Greenland
the deepest lake = Lake Baikal; the largest rainforest = the Amazon
the most common gas in the air = nitrogen; the freezing point of water = 0 degrees Celsius
the boiling point of water = 100 degrees Celsius; the chemical formula of water = H2O
the chemical formula of salt = NaCl; the chemical formula of carbon dioxide = CO2
the normal temperature of the human body = 37 degrees Celsius
the speed of light = about 300,000 kilometers per second; the value of pi = about 3.14
the national animal of Australia = the kangaroo; the largest city in the United States = New York
the largest city in Australia = Sydney; the largest city in Brazil = Sao Paulo
the third planet from the Sun = the Earth; the fourth planet from the Sun = Mars
the powerhouse of the cell = the mitochondrion
"""

# Used as: "Where is {the Eiffel Tower}?" "{The Eiffel Tower} is in {Paris}."
PLACES = """
the Eiffel Tower = Paris; Big Ben = London; the Colosseum = Rome; the Statue of Liberty = New York
the Louvre = Paris; the Taj Mahal = India; the Great Wall = China; the Great Pyramid = Egypt
Machu Picchu = Peru; the Acropolis = Athens; the Brandenburg Gate = Berlin; the Kremlin = Moscow
the Golden Gate Bridge = San Francisco; Mount Fuji = Japan; the White House = Washington, D.C.
the Sydney Opera House = Sydney; Stonehenge = England; the Grand Canyon = Arizona
the Leaning Tower = Pisa; the Sagrada Familia = Barcelona; Mount Everest = the Himalayas
the Amazon rainforest = South America; the Sahara = Africa; Niagara Falls = North America
Hollywood = Los Angeles; Harvard University = Massachusetts; Petra = Jordan
"""

# Used as: "What is {bread} made of?" "{Bread} is made of {flour and water}."
MATERIALS = """
bread = flour and water; glass = sand; paper = wood; cheese = milk; butter = cream; wine = grapes
chocolate = cocoa beans; a tire = rubber; a window = glass; a candle = wax; a book = paper
a sweater = wool; jeans = cotton; a coin = metal; a brick = clay; steel = iron and carbon
water = hydrogen and oxygen; an omelette = eggs; yogurt = milk; tofu = soybeans; raisins = grapes
flour = wheat; concrete = cement, sand and water; bronze = copper and tin; an igloo = snow
cider = apples
"""

# Used as: "What do you use {a knife} for?" "You use {a knife} for {cutting}."
USES = """
a knife = cutting; a pen = writing; a hammer = driving nails; a broom = sweeping
a spoon = eating soup; a bed = sleeping; a key = opening a lock; a clock = telling the time
a camera = taking pictures; an umbrella = keeping dry in the rain
a thermometer = measuring temperature; a ruler = measuring length
a telescope = looking at the stars; soap = washing; a microscope = looking at tiny things
a compass = finding north; a needle = sewing; an oven = baking; a refrigerator = keeping food cold
a toothbrush = cleaning your teeth; a towel = drying yourself
a telephone = talking to people far away; a map = finding your way
an eraser = removing pencil marks; scissors = cutting paper; a ladder = reaching high places
glasses = seeing better
"""

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = {
    "January": 31,
    "February": 28,
    "March": 31,
    "April": 30,
    "May": 31,
    "June": 30,
    "July": 31,
    "August": 31,
    "September": 30,
    "October": 31,
    "November": 30,
    "December": 31,
}
ORDINALS = words(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
)
UNITS = words("""
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
    fifteen sixteen seventeen eighteen nineteen twenty
""")
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def rows(table: str) -> list[list[str]]:
    """The entries of a table, each split at `|` or `=`, without blanks around the fields."""
    separator = "|" if "|" in table else "="
    return [[field.strip() for field in row.split(separator)] for row in phrases(table)]


def pairs(table: str) -> list[tuple[str, str]]:
    """The entries of a two-column table."""
    return [(entry[0], entry[1]) for entry in rows(table)]


def number_word(number: int) -> str:
    """English for 0 to 100."""
    if number <= 20:
        return UNITS[number]
    if number == 100:
        return "one hundred"
    tens, unit = divmod(number, 10)
    return TENS[tens - 2] + (f"-{UNITS[unit]}" if unit else "")
