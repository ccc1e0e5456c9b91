# SPDX-License-Identifier: Apache-2.0
# Names and nouns that fill the schemas of problems.py; all lists are open to growth (the tokenizer is trained on them).

NAMES = """Ada Amir Anna Ben Bilal Carla Chen Clara Dana David Dina Elif Emil Emma Erik Eva Farah Felix Fiona Gita
Grace Hana Hugo Ida Igor Ines Ivan Jack Jana Jonas Julia Kai Karim Kate Lara Leo Lina Lucas Maria Marta Mei Mila
Nadia Nico Nina Noah Nora Olga Omar Oscar Paula Peter Priya Quentin Rafael Rita Rosa Ruth Sam Sara Selma Simon Sofia
Stefan Tara Theo Tina Tom Uma Victor Vera Wanda Willa Xavier Yara Yusuf Zara Zoe""".split()

GROUPS = """bakery|school|museum|hotel|bookshop|garage|farm|library|factory|hospital|theatre|club|orchard|nursery|
warehouse|market|bank|shelter|workshop|village|town|company|studio|laboratory|kitchen""".replace("\n", "").split("|")

OBJECTS = """apples pears plums lemons oranges peaches melons cherries tomatoes onions carrots potatoes eggs cookies muffins
pancakes buns loaves pies candies marbles stickers stamps coins cards beads buttons ribbons candles lanterns balloons
pencils pens erasers notebooks books magazines posters postcards maps envelopes bricks tiles nails screws bolts planks
pipes wires bottles cans jars cups plates bowls spoons towels blankets pillows shirts socks hats scarves gloves shoes
toys dolls kites puzzles balls rackets tickets tokens badges medals flowers roses tulips seeds bulbs saplings cables
batteries lamps clocks keys shells pebbles crystals magnets""".split()

CONTAINERS = """boxes bags crates baskets cartons trays packs sacks bins drawers cases bundles racks shelves pallets
buckets chests folders""".split()

PEOPLE = """friends cousins children workers students neighbors classes teams families players guests volunteers
members visitors partners""".split()

PLACES = """the market|the harbor|the station|the school|the village|the museum|the office|the park|the airport|the hospital|
the shop next door|the main hall|another town|the warehouse|the river|the mountain camp|the city""".replace("\n", "").split("|")

GOODS = """tents|chairs|tables|lamps|bicycles|jackets|radios|cameras|phones|guitars|carpets|mirrors|printers|helmets|
sofas|stoves|heaters|desks|ladders|drills|mowers|boots|backpacks|watches|paintings|vases|monitors|keyboards""".replace("\n", "").split("|")

TIMES = "Then|Later|Next|After that|Afterwards|The next day|A week later|Soon after|In the evening|On Friday|On Monday".split("|")

SHARES = {2: "half", 3: "one third", 4: "one quarter", 5: "one fifth", 6: "one sixth", 7: "one seventh",
          8: "one eighth", 9: "one ninth"}
