"""The text of the corpus: a grammar of English home commands, and general short phrases.

Owns what may be said. Everything is lower case, numbers written out, no punctuation, as it is spoken; the pair trained
on it writes in that style too. Knows nothing of voices, audio or models.

A template is a string with slots in braces. A slot is either a list of phrases or a function of a random generator.
Each template has a weight, so that templates with many variants do not crowd out the short ones that people say most.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence

Slot = Sequence[str] | Callable[[random.Random], str]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth"
).split()


def spoken_number(value: int) -> str:
    """Return a number from 0 to 999,999 in words, without "and"."""
    if value < 20:
        return _ONES[value]
    if value < 100:
        tens, ones = divmod(value, 10)
        return _TENS[tens] + (f" {_ONES[ones]}" if ones else "")
    if value < 1000:
        hundreds, rest = divmod(value, 100)
        return f"{_ONES[hundreds]} hundred" + (f" {spoken_number(rest)}" if rest else "")
    thousands, rest = divmod(value, 1000)
    return f"{spoken_number(thousands)} thousand" + (f" {spoken_number(rest)}" if rest else "")


def spoken_ordinal(value: int) -> str:
    """Return an ordinal from 1 to 31 in words."""
    if value <= 20:
        return _ORDINALS[value - 1]
    if value == 30:
        return "thirtieth"
    return f"{_TENS[value // 10]} {_ORDINALS[value % 10 - 1]}"


def _percent_value(rng: random.Random) -> str:
    return spoken_number(rng.choice([*range(0, 101, 5), rng.randint(1, 100)]))


def _degrees(rng: random.Random) -> str:
    whole = rng.randint(5, 90)
    return spoken_number(whole) + (rng.choice([" point five", " and a half"]) if rng.random() < 0.1 else "")


def _clock(rng: random.Random) -> str:
    hour = spoken_number(rng.randint(1, 12))
    minute = rng.choice([0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, rng.randint(1, 59)])
    half = rng.choice(["", "", " a m", " p m", " in the morning", " in the evening", " tonight"])
    if minute == 0:
        return rng.choice([f"{hour} o'clock", hour, f"{hour}{half}"])
    if minute < 10:
        return f"{hour} oh {spoken_number(minute)}{half}"
    spoken = f"{hour} {spoken_number(minute)}{half}"
    if minute == 15:
        return rng.choice([spoken, f"a quarter past {hour}", f"quarter past {hour}"])
    if minute == 30:
        return rng.choice([spoken, f"half past {hour}"])
    if minute == 45:
        return rng.choice([spoken, f"quarter to {hour}", f"a quarter to {hour}"])
    return spoken


def _plural(count: int, unit: str) -> str:
    return f"{spoken_number(count)} {unit}{'' if count == 1 else 's'}"


def _duration(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.5:
        return _plural(rng.choice([1, 2, 3, 5, 10, 15, 20, 25, 30, 40, 45, 60, 90, rng.randint(1, 99)]), "minute")
    if kind < 0.65:
        return _plural(rng.choice([10, 15, 20, 30, 45, rng.randint(1, 99)]), "second")
    if kind < 0.78:
        return _plural(rng.choice([1, 2, 3, 4, rng.randint(1, 48)]), "hour")
    if kind < 0.86:
        return rng.choice(
            [
                "half an hour",
                "an hour",
                "an hour and a half",
                "a minute",
                "half a minute",
                "a second",
                "one and a half hours",
                "two and a half minutes",
                "three quarters of an hour",
                "a quarter of an hour",
                "a couple of minutes",
                "a few minutes",
                "five and a half minutes",
            ]
        )
    if kind < 0.95:
        return f"{_plural(rng.randint(1, 12), 'minute')}{rng.choice([' ', ' and '])}{_plural(rng.randint(1, 59), 'second')}"
    return f"{_plural(rng.randint(1, 5), 'hour')}{rng.choice([' ', ' and '])}{_plural(rng.randint(1, 59), 'minute')}"


def _date(rng: random.Random) -> str:
    month = rng.choice(MONTHS)
    day = spoken_ordinal(rng.randint(1, 31))
    return rng.choice([f"{month} {day}", f"the {day} of {month}", f"{rng.choice(DAYS)} the {day}", f"the {day}"])


def _digits(rng: random.Random) -> str:
    return " ".join(rng.choice([*_ONES[:10], "oh"]) for _ in range(rng.randint(2, 7)))


def _number(rng: random.Random) -> str:
    top = rng.choice([12, 20, 100, 100, 1000, 10000])
    return spoken_number(rng.randint(0, top))


ROOMS = (
    "kitchen|living room|bedroom|bathroom|hallway|office|garage|basement|attic|dining room|nursery|guest room|study|"
    "laundry room|patio|porch|back yard|front yard|garden|balcony|entrance|entryway|pantry|playroom|master bedroom|"
    "master bathroom|kids room|guest bathroom|upstairs|downstairs|first floor|second floor|ground floor|corridor|hall|"
    "lounge|den|library|workshop|shed|terrace|staircase|stairs|utility room|closet|conservatory|family room|"
    "home office|music room|gym|sun room|cellar|driveway|greenhouse|spare room|reading corner|play corner|toilet"
).split("|")
LIGHTS = (
    "light|lights|lamp|lamps|ceiling light|ceiling lights|floor lamp|table lamp|desk lamp|bedside lamp|night light|"
    "spotlights|chandelier|led strip|reading lamp|string lights|overhead light|wall light|christmas lights|"
    "christmas tree|candle|fairy lights|porch light|garden lights|lantern|mirror light|under cabinet lights"
).split("|")
DEVICES = (
    "fan|fans|ceiling fan|heater|radiator|tv|television|coffee maker|coffee machine|kettle|dishwasher|washing machine|"
    "dryer|oven|air conditioner|air conditioning|humidifier|dehumidifier|air purifier|speaker|radio|stereo|sprinkler|"
    "sprinklers|pump|plug|socket|switch|switches|outlet|projector|printer|computer|monitor|router|vacuum|robot vacuum|"
    "lawn mower|boiler|water heater|fireplace|electric blanket|extractor fan|doorbell|camera|alarm|siren|toaster|"
    "microwave|game console|heat lamp|fish tank|fountain|hot tub|charger|freezer|fridge|rice cooker|main valve|thermostat"
).split("|")
COVERS = (
    "blinds|blind|curtains|curtain|shades|shutters|roller shutter|garage door|gate|awning|window|windows|skylight|"
    "drapes|sun shade|left curtain|right curtain|sliding door|garage|roller blinds|pool cover"
).split("|")
LOCKS = (
    "front door|back door|side door|garage door|patio door|basement door|gate|main door|balcony door|cellar door|"
    "front gate|shed door|office door|door|doors|safe"
).split("|")
COLOURS = (
    "red|green|blue|yellow|orange|purple|pink|white|warm white|cool white|turquoise|cyan|magenta|violet|lime|gold|"
    "daylight|brown|black|soft white|teal|lavender|amber|indigo|crimson|peach"
).split("|")
SCENES = (
    "movie night|good night|good morning|party|party mode|dinner|reading|relax|bedtime|away mode|home cinema|focus|"
    "sunrise|sunset|romantic|christmas|cleaning|work|holiday mode|vacation mode|night mode|stealth mode|movie time|"
    "breakfast|welcome home|game night|cooking|yoga|nap time|guest mode"
).split("|")
ITEMS = (
    "milk|bread|eggs|butter|cheese|apples|bananas|oranges|tomatoes|potatoes|onions|garlic|rice|pasta|flour|sugar|salt|"
    "pepper|coffee|tea|juice|water|beer|wine|chicken|beef|fish|ham|yogurt|cream|chocolate|cookies|cereal|honey|jam|"
    "olive oil|toilet paper|paper towels|soap|shampoo|toothpaste|dish soap|batteries|light bulbs|dog food|cat food|"
    "lettuce|carrots|cucumbers|mushrooms|lemons|strawberries|grapes|ice cream|frozen peas|orange juice|peanut butter|"
    "trash bags|napkins|candles|washing powder|sausages|bacon|nuts|spinach|beans|corn|avocados|ginger|vinegar|mustard"
).split("|")
CHORES = (
    "call mom|call the dentist|take out the trash|water the plants|feed the cat|feed the dog|walk the dog|pay the rent|"
    "pay the bills|do the laundry|clean the kitchen|empty the dishwasher|buy a present|send the email|book a table|"
    "pick up the kids|take my medicine|check the oven|turn off the oven|wash the car|mow the lawn|change the sheets|"
    "call the doctor|renew the passport|charge the car|return the books|fix the tap|order pizza|bring in the washing|"
    "clean the gutters|vacuum the stairs|defrost the chicken|charge the phone|put the bins out|iron the shirts"
).split("|")
TIMERS = "pizza|egg|eggs|pasta|tea|coffee|laundry|cake|bread|homework|workout|rice|oven|dinner|nap|chicken|cookies|soup|roast".split(
    "|"
)
ARTISTS = (
    "the beatles|queen|mozart|beethoven|bach|adele|madonna|elton john|david bowie|pink floyd|abba|frank sinatra|"
    "johnny cash|miles davis|taylor swift|the rolling stones|bob dylan|nina simone|coldplay|radiohead|prince|vivaldi"
).split("|")
GENRES = (
    "jazz|rock|pop|classical music|country|hip hop|some music|relaxing music|dance music|blues|folk|the radio|the news|"
    "party music|sleep sounds|white noise|rain sounds|soul|techno|reggae|christmas music|an audiobook|a podcast|opera"
).split("|")
MEDIA = "music|song|movie|show|video|tv|podcast|radio|film|playlist|album|audiobook|media|track".split("|")
CITIES = (
    "london|paris|berlin|new york|tokyo|madrid|rome|amsterdam|vienna|sydney|chicago|boston|dublin|oslo|stockholm|"
    "helsinki|lisbon|toronto|seattle|prague|moscow|delhi|cairo|athens|zurich|munich|brussels|copenhagen"
).split("|")
DAYS = "monday|tuesday|wednesday|thursday|friday|saturday|sunday".split("|")
MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december".split("|")
PEOPLE = "mom|dad|anna|john|mary|peter|sarah|tom|emma|david|grandma|grandpa|my wife|my husband|the kids|lisa|paul|everyone|jane|mark|my son|my daughter|michael|alice|robert|the neighbors".split(
    "|"
)

SHORT_ANSWERS = (
    "yes|no|stop|on|off|up|down|left|right|go|okay|cancel|thanks|thank you|please|never mind|nevermind|good night|"
    "good morning|hello|hi|hey|wait|continue|pause|play|next|previous|back|again|repeat|louder|quieter|brighter|darker|"
    "warmer|cooler|mute|unmute|resume|skip|start|enough|sure|yeah|yep|nope|maybe|help|more|less|open|close|lock|unlock|"
    "not now|go ahead|that's all|all of them|do it|of course|no thanks|yes please|what|who|when|where|why|how|which one|"
    "later|now|today|tomorrow|tonight|a little|a bit more|a bit less|half|full|maximum|minimum|everything|nothing|"
    "forward|backward|follow|learn|visual|bed|bird|cat|dog|happy|house|marvin|sheila|tree|wow|computer|emergency|"
    "warning|goodbye|bye|good evening|how are you|correct|wrong|exactly|right now|the first one|the second one|"
    "the last one|both|neither|none|any|all|ready|done|finished|quiet|silence|lights|music|time|weather|timer|alarm"
).split("|")
NAMES = "computer|hey computer|okay house|hey house|assistant|hey jane|hello computer|hey assistant".split("|")

COMMON_WORDS = (
    "time people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area "
    "money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea kid body "
    "information back parent face others level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education foot boy age policy music market sense nation plan "
    "college interest death experience effect use class control field development role effort rate heart drug show "
    "leader light voice wife police mind price report decision son view relationship town road arm difference value "
    "building action season society tax director position player record paper space ground form event official matter "
    "center couple site project activity star table need court oil situation cost industry figure street image phone "
    "data picture practice piece land product doctor wall patient worker news test movie north love support technology "
    "step baby type attention film tree source truth future dog fire chair summer winter spring autumn window garden "
    "river mountain sea sun moon cloud rain snow wind storm bird fish horse cow sheep flower leaf grass stone sand gold "
    "silver iron glass wood cloth shirt shoe hat coat dress bag box cup plate knife fork spoon bottle bread meat fruit "
    "apple egg salt sugar soup breakfast lunch dinner bed floor roof kitchen bath key clock watch letter card ticket "
    "train bus plane boat bridge station airport hotel shop store bank church hospital library park island beach "
    "forest farm field animal cat mouse lion bear elephant monkey snake insect bee "
    "big small good bad new old young long short high low hot cold warm cool hard soft heavy light dark bright clean "
    "dirty wet dry full empty early late fast slow easy difficult cheap rich poor strong weak happy sad angry tired "
    "hungry thirsty sick healthy safe dangerous quiet loud sweet bitter sharp round square thick thin wide narrow deep "
    "beautiful ugly important interesting boring strange common special simple clear true false free busy ready "
    "be have do say get make go know take see come think look want give use find tell ask work seem feel try leave call "
    "keep let begin help talk turn start show hear play run move like live believe hold bring happen write provide sit "
    "stand lose pay meet include continue set learn change lead understand watch follow stop create speak read allow "
    "add spend grow open walk win offer remember consider appear buy wait serve die send expect build stay fall cut "
    "reach kill remain suggest raise pass sell require report decide pull break carry drive eat drink sleep swim fly "
    "sing dance laugh cry smile jump climb throw catch push draw paint cook wash clean wear teach travel visit "
    "always never often sometimes usually already still again almost quite very really too also just only even maybe "
    "perhaps together alone away here there everywhere somewhere inside outside above below behind between under over "
    "before after during since until while because although if unless however therefore"
).split()

_SUBJECTS = "i|you|he|she|we|they|my brother|my sister|the teacher|the old man|the children|our neighbor|a friend of mine|the doctor|everybody|nobody|his mother|her father|the little girl|the boy".split(
    "|"
)
_PAST = "saw|found|bought|lost|wanted|liked|needed|forgot|remembered|took|brought|made|sold|watched|heard about|asked for|talked about|looked at|opened|carried|painted|broke|cleaned|left|kept".split(
    "|"
)
_OBJECTS = "the book|a new car|the big house|an old picture|the red bag|some water|the green door|a small boat|the long letter|a piece of paper|the white horse|a cup of tea|the best answer|his money|her keys|the wrong bus|a beautiful garden|the last train|a good story|the broken window|three eggs|two tickets|many friends|the heavy box|a warm coat".split(
    "|"
)
_WHEN = "yesterday|last night|in the morning|this evening|on sunday|two days ago|before dinner|after school|at noon|last summer|a long time ago|every day|once a week|right away|in the afternoon|at the station|in the park|near the river|by the window|at home|on the way to work|with great care|without a word".split(
    "|"
)
_PRESENT = "want to|have to|would like to|need to|don't want to|will|can't|should|used to|am going to|must".split("|")
_VERBS = "go home|see the doctor|learn english|play football|read a book|write a letter|have a cup of coffee|take a walk|wait for the bus|listen to music|buy some fruit|visit my family|work harder|get some sleep|help you|tell the truth|open the window|wash the dishes|find my glasses|make a plan|catch the train|leave early|stay here|try again|speak louder|understand this".split(
    "|"
)

SLOTS: dict[str, Slot] = {
    "room": ROOMS,
    "light": LIGHTS,
    "device": DEVICES,
    "cover": COVERS,
    "lockable": LOCKS,
    "colour": COLOURS,
    "scene": SCENES,
    "item": ITEMS,
    "chore": CHORES,
    "timer": TIMERS,
    "artist": ARTISTS,
    "genre": GENRES,
    "media": MEDIA,
    "city": CITIES,
    "day": DAYS,
    "person": PEOPLE,
    "short": SHORT_ANSWERS,
    "name": NAMES,
    "percent": _percent_value,
    "degrees": _degrees,
    "clock": _clock,
    "duration": _duration,
    "date": _date,
    "digits": _digits,
    "number": _number,
    "word": COMMON_WORDS,
    "kelvin": [
        "two thousand",
        "two thousand seven hundred",
        "three thousand",
        "three thousand five hundred",
        "four thousand",
        "five thousand",
        "six thousand",
        "six thousand five hundred",
    ],
    "onoff": ["on", "off"],
    "updown": ["up", "down"],
    "please": [
        "",
        "",
        "",
        "",
        "please ",
        "could you ",
        "can you ",
        "would you ",
        "would you please ",
        "i want you to ",
        "hey ",
        "okay ",
        "now ",
    ],
    "thanks": ["", "", "", "", "", " please", " now", " thanks", " right now", " again"],
    "the": ["the ", "the ", "the ", "", "my ", "all the ", "both ", "that "],
    "where": [
        "in the {room}",
        "in the {room}",
        "upstairs",
        "downstairs",
        "in here",
        "everywhere",
        "on the first floor",
        "on the second floor",
        "outside",
        "in my room",
        "in the whole house",
    ],
    "when": [
        "at {clock}",
        "in {duration}",
        "tomorrow",
        "tonight",
        "on {day}",
        "tomorrow at {clock}",
        "for {clock}",
        "on {date}",
        "every {day}",
        "every morning",
        "this evening",
        "tomorrow morning",
        "after {duration}",
    ],
    "degunit": ["", " degrees", " degrees", " degrees celsius", " degrees fahrenheit"],
    "pct": [" percent", " percent", " percent", ""],
    "make": ["make", "turn", "set", "change"],
    "raise": ["raise", "increase", "turn up", "boost"],
    "lower": ["lower", "decrease", "turn down", "reduce"],
    "opened": ["open", "closed", "shut"],
    "locked": ["locked", "unlocked"],
    "measure": [
        "temperature",
        "humidity",
        "battery level",
        "brightness",
        "energy use",
        "air quality",
        "volume",
    ],
    "subject": _SUBJECTS,
    "past": _PAST,
    "object": _OBJECTS,
    "circumstance": _WHEN,
    "modal": _PRESENT,
    "verb": _VERBS,
}

TEMPLATES: list[tuple[float, str]] = [
    # lights and switches
    (6, "{please}turn {onoff} the {room} {light}{thanks}"),
    (6, "{please}turn {onoff} the {light} {where}{thanks}"),
    (3, "{please}turn the {room} {light} {onoff}{thanks}"),
    (3, "{please}turn {onoff} {the}{device}{thanks}"),
    (2, "{please}turn the {device} {onoff}"),
    (2, "{please}turn {onoff} the {device} {where}"),
    (2, "{please}switch {onoff} {the}{light}{thanks}"),
    (2, "{please}switch {the}{device} {onoff} {where}"),
    (2, "{room} {light} {onoff}"),
    (1, "{light} {onoff}"), (1, "lights {onoff}"), (1, "{device} {onoff}"), (1, "everything {onoff}"),
    (1, "turn everything {onoff}"), (1, "all lights {onoff}"), (1, "all {onoff}"),
    (1, "turn {onoff} all the lights {where}"), (1, "turn {onoff} all lights"),
    (1, "activate the {room} {light}"), (1, "deactivate the {device} {where}"), (1, "toggle the {light} {where}"),
    (1, "light up the {room}"), (1, "it's too dark {where}"), (1, "it is too bright {where}"),
    (1, "in {duration} turn {onoff} the {light}"), (1, "turn {onoff} the {room} {light} {when}"),
    (1, "turn {onoff} the {device} for {duration}"), (1, "turn on all the {light} except the {room}"),
    (2, "{please}dim the {room} {light} to {percent}{pct}"), (1, "dim the {light}{thanks}"),
    (1, "brighten the {room} {light}"), (1, "{please}dim the lights {where}"),
    (2, "set the {room} {light} to {percent}{pct}"), (2, "set {the}{light} {where} to {percent}{pct} brightness"),
    (2, "set the {room} brightness to {percent}{pct}"), (1, "{room} brightness {percent}{pct}"),
    (1, "brightness {percent} percent {where}"), (1, "change the brightness of the {room} to {percent}{pct}"),
    (1, "{raise} the brightness {where}"), (1, "{lower} the brightness of the {light} by {percent} percent"),
    (1, "set the {room} {light} to the maximum"), (1, "set the {light} brightness to the lowest"),
    (2, "{make} the {room} {light} {colour}"), (2, "{make} the {light} {where} {colour}"),
    (2, "set the {room} {light} to {colour}"), (1, "change the color of the {room} {light} to {colour}"),
    (1, "change the {light} to {colour}"), (1, "set the color temperature {where} to {kelvin} kelvin"),
    (1, "set {room} color temperature to {kelvin}"), (1, "set the {light} temperature to {kelvin} kelvin"),
    # covers, locks
    (3, "{please}open {the}{cover} {where}{thanks}"), (3, "{please}close {the}{cover} {where}{thanks}"),
    (2, "open the {room} {cover}"), (2, "close the {room} {cover}"), (1, "open the {cover}"), (1, "close the {cover}"),
    (2, "set the {room} {cover} to {percent}{pct}"), (1, "open the {cover} to {percent}{pct}"),
    (1, "raise the {cover} {where}"), (1, "lower the {cover}{thanks}"), (1, "stop the {cover}"), (1, "shut the {cover}"),
    (1, "roll {updown} the {cover}"), (1, "open the {cover} halfway"), (1, "close all the {cover}"),
    (2, "{please}lock the {lockable}{thanks}"), (2, "{please}unlock the {lockable}{thanks}"), (1, "lock up the house"),
    (2, "is the {lockable} {locked}"), (1, "did i lock the {lockable}"), (1, "make sure the {lockable} is locked"),
    (1, "is the {lockable} {locked} {where}"), (2, "is the {room} {cover} {opened}"),
    # climate
    (3, "set the temperature to {degrees}{degunit}{thanks}"), (2, "set the {room} temperature to {degrees}{degunit}"),
    (2, "set the thermostat to {degrees}{degunit}"), (1, "{raise} the temperature {where}"),
    (1, "{lower} the temperature {where} by {degrees}{degunit}"), (1, "turn {updown} the heat {where}"),
    (1, "turn {updown} the heating"), (1, "make it warmer {where}"), (1, "make it cooler {where}"),
    (1, "it's too hot {where}"), (1, "i'm cold"), (1, "i am too warm"), (1, "set the {device} to {degrees} degrees"),
    (1, "set {the}fan speed to {percent}{pct}"), (1, "set the {room} fan to {percent}{pct}"),
    (1, "set the humidity to {percent} percent"), (2, "what's the temperature {where}"),
    (2, "what is the temperature {where}"), (1, "how cold is it {where}"), (1, "how warm is it outside"),
    (1, "how hot is it {where}"), (1, "what's the {measure} of the {device}"), (1, "what is the {measure} {where}"),
    # questions about the house
    (2, "is the {room} {light} {onoff}"), (1, "is the {device} {onoff}"), (2, "are the lights {onoff} {where}"),
    (1, "are any lights on {where}"), (1, "are all the {cover} closed {where}"), (1, "which lights are {onoff} {where}"),
    (1, "which {cover} are {opened}"), (1, "which {room} doors are unlocked"), (1, "how many lights are on"),
    (1, "are any windows open"), (1, "is anyone home"), (1, "where is {person}"), (1, "is {person} at home"),
    (1, "is the {device} running"), (1, "is there motion {where}"), (1, "who is at the door"),
    (1, "what is the state of the {device}"), (1, "how much power does the {device} use"),
    # media
    (2, "play {genre}{thanks}"), (2, "play {genre} {where}"), (1, "play {artist}"), (1, "play {artist} {where}"),
    (1, "play the album by {artist}"), (1, "play something by {artist}"), (1, "play the next {media}"),
    (2, "{please}pause the {media}"), (1, "pause"), (1, "pause my {media} {where}"), (2, "stop the {media}"),
    (1, "stop the {media} {where}"), (1, "resume the {media}"), (1, "unpause my {media}"), (2, "skip this {media}"),
    (1, "next {media}"), (1, "next track {where}"), (1, "previous {media}"), (1, "replay the last {media}"),
    (2, "turn {updown} the volume{thanks}"), (2, "turn the volume {updown}{thanks}"), (1, "volume {updown}"),
    (1, "volume {updown} by {percent} percent"), (2, "set the volume to {percent}{pct}"),
    (1, "set the {room} volume to {percent}{pct}"), (1, "{raise} the volume by {percent}{pct}"),
    (1, "{lower} the volume {where}"), (1, "turn the {media} {updown}"), (1, "mute the {media}"), (1, "unmute the tv"),
    (1, "make it louder"), (1, "not so loud"), (1, "what song is this"), (1, "who sings this"),
    (1, "turn off the tv in {duration}"), (1, "shuffle my playlist"), (1, "what's playing {where}"),
    # timers, alarms, lists, reminders
    (3, "set a timer for {duration}"), (2, "set a {duration} timer"), (1, "{duration} timer"), (1, "timer {duration}"),
    (1, "start a timer for {duration}"), (1, "set a {timer} timer for {duration}"), (1, "timer for {duration}"),
    (1, "set a timer for {duration} called {timer}"), (1, "set a {duration} timer named {timer}"),
    (1, "{duration} timer for {timer}"), (1, "cancel the {timer} timer"), (1, "cancel my timer"), (1, "stop the timer"),
    (1, "pause the timer"), (1, "pause my {timer} timer"), (1, "resume the {timer} timer"), (1, "cancel all timers"),
    (1, "how much time is left"), (1, "how long is left on the {timer} timer"), (1, "add {duration} to the timer"),
    (1, "add {duration} to my {timer} timer"), (1, "remove {duration} from the timer"),
    (1, "take {duration} off the {timer} timer"), (1, "increase the timer by {duration}"),
    (1, "decrease the {timer} timer by {duration}"), (1, "timer status"), (1, "how many timers do i have"),
    (2, "set an alarm for {clock}"), (2, "wake me up at {clock}"), (1, "wake me at {clock} {when}"),
    (1, "set an alarm {when}"), (1, "cancel the alarm"), (1, "turn off my alarm"), (1, "snooze"), (1, "snooze the alarm"),
    (2, "add {item} to my shopping list"), (2, "add {item} to the shopping list"), (1, "put {item} on the list"),
    (1, "add {item} and {item} to the list"), (1, "remove {item} from my shopping list"), (1, "we need {item}"),
    (1, "buy {item}"), (1, "what's on my shopping list"), (1, "read my to do list"), (1, "add {chore} to my to do list"),
    (1, "i am out of {item}"), (1, "we are out of {item} and {item}"), (1, "check off {item}"),
    (2, "remind me to {chore} {when}"), (1, "remind me to {chore}"), (1, "remind {person} to {chore} {when}"),
    (1, "remind me {when} to {chore}"), (1, "what are my reminders"), (1, "delete the reminder"),
    (1, "put {chore} on my calendar {when}"), (1, "what's on my calendar {when}"), (1, "schedule a meeting {when}"),
    # general questions
    (2, "what time is it"), (1, "what's the time"), (1, "what time is it in {city}"), (1, "what day is it"),
    (1, "what's the date today"), (2, "what's the weather like"), (1, "what's the weather in {city}"),
    (1, "what is the weather {when}"), (1, "will it rain {when}"), (1, "is it going to snow {when}"),
    (1, "do i need an umbrella"), (1, "how far is {city}"), (1, "how old is {person}"), (1, "what is {number} plus {number}"),
    (1, "what's {number} times {number}"), (1, "what is {percent} percent of {number}"), (1, "tell me a joke"),
    (1, "tell me the news"), (1, "when is sunset"), (1, "when is the next bus"), (1, "how is the traffic to {city}"),
    (1, "what can you do"), (1, "who are you"), (1, "can you hear me"), (1, "what did you say"), (1, "say that again"),
    (1, "how do you say {word} in french"), (1, "spell {word}"), (1, "what does {word} mean"),
    (1, "call {person}"), (1, "send a message to {person}"), (1, "tell {person} that dinner is ready"),
    (1, "tell {person} i will be late"), (1, "announce that we are leaving in {duration}"), (1, "broadcast good night"),
    # scenes, vacuum, mode
    (2, "activate {scene}"), (1, "turn on {scene}"), (1, "start {scene}"), (1, "set the scene to {scene}"),
    (1, "{scene} mode"), (1, "it's {scene} time"), (1, "run the {scene} routine"), (1, "run the {scene} script"),
    (1, "start the vacuum"), (1, "vacuum the {room}"), (1, "send the vacuum home"), (1, "start mowing"),
    (1, "clean the {room}"), (1, "arm the alarm"), (1, "disarm the alarm"), (1, "arm the house"), (1, "i'm home"),
    (1, "i'm leaving"), (1, "i am going to bed"), (1, "good night everyone"), (1, "open the main valve to {percent}"),
    (1, "start the {device}"), (1, "stop the {device}"), (1, "restart the {device}"), (1, "put the {device} on"),
    # several commands, the wake phrase
    (2, "{name} turn {onoff} the {room} {light}"), (1, "{name} what time is it"), (1, "{name} {short}"),
    (1, "turn {onoff} the {room} {light} and the {device}"), (1, "close the {cover} and lock the {lockable}"),
    (1, "turn {onoff} the {light} and set the temperature to {degrees}{degunit}"),
    (1, "dim the {light} and play {genre}"), (1, "turn off the lights {where} and {where}"),
    # short answers, numbers, times
    (22, "{short}"), (3, "{digits}"), (6, "{number}"), (2, "{clock}"), (2, "{duration}"), (1, "{percent} percent"),
    (2, "{degrees} degrees"), (1, "{date}"), (1, "{colour}"), (1, "{room}"), (1, "{day}"), (1, "the {room}"),
    (1, "in the {room}"), (1, "{short} {short}"), (1, "{item}"), (1, "the {light} {where}"), (1, "{person}"),
    # general short phrases
    (5, "{subject} {past} {object} {circumstance}"), (3, "{subject} {past} {object}"), (3, "i {modal} {verb}"),
    (2, "we {modal} {verb} {circumstance}"), (1, "do you {modal} {verb}"), (1, "where did {subject} put {object}"),
    (1, "why is the {word} so {word}"), (2, "the {word} and the {word}"), (1, "this is a {word} {word}"),
    (1, "there is a {word} in the {word}"), (1, "please {verb}"), (1, "let's {verb} {circumstance}"),
    (4, "{word} {word}"), (5, "{word} {word} {word}"), (4, "{word} {word} {word} {word}"),
    (3, "{word} {word} {word} {word} {word} {word}"), (4, "{word}"),
]  # fmt: skip

_SLOT = re.compile(r"\{(\w+)\}")


def expand(template: str, rng: random.Random) -> str:
    """Fill every slot of a template, slots inside slots included."""

    def fill(match: re.Match[str]) -> str:
        slot = SLOTS[match[1]]
        return slot(rng) if callable(slot) else rng.choice(slot)

    while _SLOT.search(template):
        template = _SLOT.sub(fill, template)
    return " ".join(template.split())


def sentences(seed: int) -> Iterator[str]:
    """Generate sentences without end, always the same ones for a seed.

    Templates come as often as their weight says.
    """
    rng = random.Random(seed)
    weights = [weight for weight, _ in TEMPLATES]
    templates = [template for _, template in TEMPLATES]
    while True:
        yield expand(rng.choices(templates, weights)[0], rng)


_LETTERS_ONLY = re.compile(r"[^a-z' ]+")


def normalise(text: str) -> str:
    """Return a transcript in the corpus's style: lower case, letters and apostrophes only, single spaces."""
    text = text.lower().replace("\u2019", "'").replace("-", " ")
    return " ".join(_LETTERS_ONLY.sub(" ", text).split())
