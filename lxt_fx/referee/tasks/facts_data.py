"""What the task of facts asks for: relations with prompts, and pairs of subject and answer. Own text."""

from __future__ import annotations

COUNTRIES = """
France Paris French Europe|Germany Berlin German Europe|Italy Rome Italian Europe|Spain Madrid Spanish Europe
Portugal Lisbon Portuguese Europe|Greece Athens Greek Europe|Poland Warsaw Polish Europe
Hungary Budapest Hungarian Europe|Austria Vienna German Europe|Sweden Stockholm Swedish Europe
Norway Oslo Norwegian Europe|Finland Helsinki Finnish Europe|Denmark Copenhagen Danish Europe
Ireland Dublin English Europe|Iceland Reykjavik Icelandic Europe|Romania Bucharest Romanian Europe
Bulgaria Sofia Bulgarian Europe|Croatia Zagreb Croatian Europe|Serbia Belgrade Serbian Europe
Ukraine Kyiv Ukrainian Europe|Russia Moscow Russian Europe|Turkey Ankara Turkish Asia|Japan Tokyo Japanese Asia
China Beijing Chinese Asia|Thailand Bangkok Thai Asia|Vietnam Hanoi Vietnamese Asia|Indonesia Jakarta Indonesian Asia
Iran Tehran Persian Asia|Iraq Baghdad Arabic Asia|Syria Damascus Arabic Asia|Lebanon Beirut Arabic Asia
Jordan Amman Arabic Asia|Afghanistan Kabul Pashto Asia|Nepal Kathmandu Nepali Asia|Mongolia Ulaanbaatar Mongolian Asia
Egypt Cairo Arabic Africa|Morocco Rabat Arabic Africa|Algeria Algiers Arabic Africa|Tunisia Tunis Arabic Africa
Libya Tripoli Arabic Africa|Sudan Khartoum Arabic Africa|Kenya Nairobi Swahili Africa|Ethiopia Addis Amharic Africa
Ghana Accra English Africa|Senegal Dakar French Africa|Somalia Mogadishu Somali Africa|Cuba Havana Spanish North
Mexico Mexico Spanish North|Canada Ottawa English North|Jamaica Kingston English North|Peru Lima Spanish South
Chile Santiago Spanish South|Argentina Buenos Spanish South|Brazil Brasília Portuguese South
Colombia Bogotá Spanish South|Venezuela Caracas Spanish South|Ecuador Quito Spanish South
Uruguay Montevideo Spanish South
"""
"""Country, first word of its capital, language, first word of its continent."""

CITIES = """
France Lyon Marseille Toulouse Bordeaux Nice Strasbourg Lille Nantes
Germany Munich Hamburg Cologne Frankfurt Dresden Leipzig Stuttgart Bremen
Italy Milan Turin Naples Florence Venice Bologna Genoa Palermo
Spain Barcelona Seville Valencia Bilbao Granada Zaragoza
Japan Osaka Kyoto Nagoya Hiroshima Sapporo Yokohama
China Shanghai Guangzhou Shenzhen Wuhan Nanjing Chengdu
India Mumbai Chennai Kolkata Bangalore Jaipur Hyderabad Pune
Canada Toronto Montreal Vancouver Calgary Winnipeg
Australia Sydney Melbourne Brisbane Perth Adelaide
Brazil Salvador Recife Curitiba Fortaleza
Poland Krakow Gdansk Wroclaw
Turkey Istanbul Izmir Antalya
Egypt Alexandria Luxor Aswan
Morocco Casablanca Marrakesh Fez
Russia Vladivostok Novosibirsk
Pakistan Karachi Lahore Peshawar
Portugal Porto Braga Coimbra
Sweden Gothenburg Uppsala Malmö
Norway Bergen Trondheim
Switzerland Zurich Geneva Basel Lausanne
Belgium Antwerp Bruges Ghent
Scotland Edinburgh Glasgow Aberdeen
Greece Thessaloniki
Mexico Guadalajara Monterrey Tijuana
Nigeria Lagos Kano Ibadan
Vietnam Hue Haiphong
Ireland Cork Galway Limerick
"""
"""Country and cities in it that are not its capital."""

KINDS = """
bird sparrow eagle owl parrot robin pigeon crow raven hawk falcon penguin ostrich swan goose seagull
fish salmon trout tuna cod herring carp mackerel sardine shark
insect beetle ant butterfly mosquito grasshopper bee wasp moth
tree oak pine maple birch willow elm cedar spruce poplar
flower rose tulip daisy lily orchid daffodil violet sunflower
fruit apple banana pear mango peach cherry plum grape papaya
vegetable carrot cabbage spinach broccoli onion potato lettuce
metal iron copper gold silver zinc aluminium tin nickel
instrument piano violin trumpet flute guitar cello clarinet harp
vehicle car truck bus motorcycle van tractor
tool hammer screwdriver saw wrench chisel drill
dog poodle beagle dachshund labrador
sport football basketball tennis cricket hockey rugby baseball golf
shape triangle circle square rectangle hexagon pentagon
colour red blue green yellow purple orange
snake python cobra viper rattlesnake
dance waltz tango salsa ballet polka
language French Latin Spanish Japanese Arabic Dutch
planet Mars Venus Jupiter Saturn Mercury Neptune Uranus
gas oxygen hydrogen helium nitrogen methane
weapon sword rifle pistol spear dagger
furniture chair table sofa desk bookshelf
disease malaria cholera measles tuberculosis influenza
religion Buddhism Islam Hinduism Christianity
drink coffee tea lemonade beer
"""
"""Kind and things of it."""

OPPOSITES = """
hot cold|big small|tall short|fast slow|light dark|good bad|happy sad|rich poor|strong weak|young old|early late
open closed|hard soft|wet dry|clean dirty|full empty|heavy light|loud quiet|deep shallow|wide narrow|thick thin
high low|up down|left right|north south|east west|day night|black white|true false|positive negative|alive dead
love hate|war peace|success failure|begin end|win lose|buy sell|give take|push pull|front back|inside outside
above below|before after|first last|always never|cheap expensive|safe dangerous|ancient modern|male female
friend enemy|question answer|arrival departure|increase decrease
"""

YOUNG = """
dog puppy|cat kitten|cow calf|horse foal|sheep lamb|pig piglet|goat kid|deer fawn|duck duckling|hen chick
goose gosling|bear cub|lion cub|wolf pup|kangaroo joey|frog tadpole|swan cygnet|elephant calf|whale calf|seal pup
"""

SYMBOLS = """
gold Au|silver Ag|iron Fe|copper Cu|sodium Na|potassium K|lead Pb|tin Sn|helium He|hydrogen H|oxygen O|carbon C
nitrogen N|calcium Ca|zinc Zn|mercury Hg|uranium U|neon Ne|chlorine Cl|magnesium Mg|aluminium Al|silicon Si|sulfur S
nickel Ni
"""

COLOURS = """
grass green|snow white|coal black|blood red|milk white|a_ripe_banana yellow|a_clear_sky blue|a_ripe_tomato red
chocolate brown|a_raven black|an_emerald green|a_ruby red|a_carrot orange|a_lemon yellow|a_sapphire blue|chalk white
spinach green|soot black
"""

PLURALS = """
mouse mice|child children|man men|woman women|foot feet|tooth teeth|goose geese|knife knives|leaf leaves|wolf wolves
life lives|ox oxen|half halves|shelf shelves|loaf loaves|thief thieves|wife wives|city cities|baby babies
party parties|box boxes|bus buses
"""

PASTS = """
go went|run ran|see saw|eat ate|take took|give gave|write wrote|drive drove|speak spoke|break broke|buy bought
bring brought|think thought|teach taught|catch caught|fly flew|grow grew|know knew|swim swam|sing sang|begin began
drink drank|come came|become became|win won|lose lost|find found|sleep slept|build built|send sent|fall fell|feel felt
leave left|meet met
"""

AUTHORS = """
Hamlet William|Macbeth William|Romeo_and_Juliet William|Othello William|Oliver_Twist Charles|David_Copperfield Charles
Great_Expectations Charles|A_Christmas_Carol Charles|Pride_and_Prejudice Jane|Sense_and_Sensibility Jane|Emma Jane
Frankenstein Mary|Dracula Bram|War_and_Peace Leo|Anna_Karenina Leo|Crime_and_Punishment F|The_Odyssey Homer
The_Iliad Homer|The_Adventures_of_Tom_Sawyer Mark|The_Adventures_of_Huckleberry_Finn Mark|Moby-Dick Herman
The_Great_Gatsby F.|Walden Henry|The_Old_Man_and_the_Sea Ernest|A_Farewell_to_Arms Ernest|The_Grapes_of_Wrath John
Of_Mice_and_Men John|Animal_Farm George|The_Hobbit J|The_Lord_of_the_Rings J|Treasure_Island Robert|Don_Quixote Miguel
Les_Misérables Victor|The_Republic Plato|On_the_Origin_of_Species Charles|The_Wealth_of_Nations Adam
The_Time_Machine H|The_Jungle_Book Rudyard|Paradise_Lost John
"""
"""Work and first name of its author, or how that begins."""

NEXT = """
January February|February March|March April|April May|May June|June July|July August|August September
September October|October November|November December|Monday Tuesday|Tuesday Wednesday|Wednesday Thursday
Thursday Friday|Friday Saturday|Saturday Sunday|Sunday Monday|one two|two three|three four|four five|five six
six seven|seven eight|eight nine|nine ten|ten eleven|eleven twelve
"""

MAKERS = """
bread baker|shoes shoemaker|furniture carpenter|beer brewer|poems poet|novels novelist|paintings painter
songs songwriter|sculptures sculptor|photographs photographer|pots potter|clothes tailor|music composer
jewellery jeweler|plays playwright
"""

WORKS = """
teaches teacher|paints painter|sings singer|dances dancer|farms farmer|fishes fisherman|cooks chef|acts actor
writes writer|drives_a_bus driver|flies_planes pilot|treats_patients doctor|treats_animals veterinarian
fixes_pipes plumber|cuts_hair barber|designs_buildings architect|defends_people_in_court lawyer|repairs_teeth dentist
studies_stars astronomer|puts_out_fires fire|studies_rocks geologist|studies_plants botanist
studies_the_past historian|delivers_mail mail|extracts_coal miner
"""

RELATIONS: dict[str, tuple[str, ...]] = {
    "capital": (
        "The capital of [{}] is",
        "The capital city of [{}] is called",
        "Question: What is the capital of [{}]? Answer:",
        "If you travel to [{}], you should visit its capital,",
        "[{}] is a country. Its capital is the city of",
        "We spent a week in [{}] and stayed in the capital,",
    ),
    "language": (
        "The official language of [{}] is",
        "Most people who live in [{}] speak",
        "Question: Which language do people in [{}] speak? Answer:",
        "She moved to [{}] last year, so she is learning to speak",
    ),
    "continent": ("[{}] is a country in", "On a map of the world, [{}] lies on the continent of"),
    "city": (
        "The city of [{}] is located in",
        "[{}] is a city in the country of",
        "Question: In which country is [{}]? Answer:",
        "The train took us to [{}], which is a large city in",
    ),
    "kind": (
        "[{}] is a type of",
        "The word [{}] is the name of a",
        "Question: What is meant by the word [{}]? Answer: It is a kind of",
        "In a list of examples, [{}] is a kind of",
    ),
    "opposite": (
        "The opposite of [{}] is",
        "The opposite of the word [{}] is the word",
        "Question: What is the opposite of [{}]? Answer:",
    ),
    "young": ("A young [{}] is called a", "A baby [{}] is called a", "Question: What is a young [{}] called? Answer: A"),
    "symbol": (
        "The chemical symbol for [{}] is",
        "In the periodic table, the element [{}] has the symbol",
        "Question: What is the chemical symbol of [{}]? Answer:",
    ),
    "colour": (
        "The color of [{}] is",
        "Question: What color is [{}]? Answer:",
        "Everybody knows that the color of [{}] is",
    ),
    "plural": ("The plural of [{}] is", "One [{}], two", "Question: What is the plural of [{}]? Answer:"),
    "past": (
        "The past tense of [{}] is",
        "Today I [{}], yesterday I",
        "Question: What is the past tense of [{}]? Answer:",
        "The past tense of the verb [{}] is the word",
    ),
    "author": ("[{}] was written by", "The author of [{}] is", "Question: Who wrote [{}]? Answer:"),
    "next": ("What comes right after [{}]? It is", "Right after [{}] comes", "First comes [{}], and then comes"),
    "maker": ("A person who makes [{}] is called a", "Somebody whose job it is to make [{}] is a"),
    "work": ("A person who [{}] is called a", "Somebody who [{}] for a living is a"),
}
"""By relation the prompts; the subject stands in brackets."""
