"""Tables of the built-in world: names, values and wordings."""

from qwen3llada.corpus.builtin.grammar import Attribute, words

WOMEN = words(
    "Mira Hanna Edda Lotte Ines Freya Nora Selma Vera Tilda Ruth Petra Greta Yara Olive Daphne Agnes Clara Elin "
    "Judith Karin Leonie Martha Rosa Sonja Thea Ursula Wilma Beatrix Cora Dora Flora"
)
MEN = words(
    "Tobias Anton Bruno Caspar Emil Felix Gregor Hugo Ivan Jonas Konrad Leopold Magnus Nils Oskar Paul Quentin Rufus "
    "Silas Theo Ulrich Victor Walter Yannick Alfred Basil Conrad Dorian Edwin Frank Gilbert Henrik"
)
TOWNS = words(
    "Oakford Stonebridge Millbrook Ashby Fernhill Redmoor Highgate Larkfield Eastwick Thornton Willowdale Copperton"
)

CRAFTS = {  # craft -> tool, material
    "a weaver": ("a loom", "wool"),
    "a potter": ("a wheel", "clay"),
    "a baker": ("an oven", "flour"),
    "a smith": ("a hammer", "iron"),
    "a carpenter": ("a saw", "wood"),
    "a tailor": ("a needle", "cloth"),
    "a cobbler": ("an awl", "leather"),
    "a mason": ("a chisel", "stone"),
    "a painter": ("a brush", "colours"),
    "a thatcher": ("a ladder", "straw"),
    "a candlemaker": ("a mould", "wax"),
    "a gardener": ("a spade", "soil"),
}
ANIMALS = {  # animal -> food, shelter
    "a goat": ("leaves", "a shed"),
    "a hen": ("grain", "a coop"),
    "a horse": ("oats", "a stable"),
    "a cow": ("grass", "a barn"),
    "a dog": ("meat", "a kennel"),
    "a cat": ("fish", "a basket"),
    "a rabbit": ("carrots", "a hutch"),
    "a parrot": ("seeds", "a cage"),
    "a tortoise": ("lettuce", "a box"),
    "a frog": ("flies", "a pond"),
    "a pig": ("acorns", "a sty"),
    "a pigeon": ("peas", "a loft"),
}

PERSON = (
    Attribute(
        name="town",
        values=TOWNS,
        answer="{Who} lives in {v}.",
        statements=("{Whose} home is in {v}.", "{V} is where {who} lives.", "In {v}, everyone knows {whom}."),
        group="{names} live in {v}.",
        questions=("Where does {who} live?", "Which town is {whose} home?", "In which town can I visit {whom}?"),
        follow_up="And where does {who} live?",
    ),
    Attribute(
        name="craft",
        values=tuple(CRAFTS),
        answer="{Who} works as {v}.",
        statements=(
            "{Whose} trade is that of {v}.",
            "{Who} has long been {v}.",
            "{V} by trade, {who} works every day.",
        ),
        group="{names} each work as {v}.",
        questions=("What does {who} work as?", "What is {whose} trade?", "How does {who} earn a living?"),
        follow_up="And what is {whose} trade?",
    ),
    Attribute(
        name="animal",
        values=tuple(ANIMALS),
        answer="{Who} keeps {v}.",
        statements=("{Whose} animal is {v}.", "{V} belongs to {whom}.", "{Who} looks after {v}."),
        group="{names} each keep {v}.",
        questions=("Which animal does {who} keep?", "What is {whose} animal?", "Which animal belongs to {whom}?"),
        follow_up="And which animal does {who} keep?",
    ),
    Attribute(
        name="instrument",
        values=("the fiddle", "the flute", "the harp", "the drum", "the lute", "the horn", "the bells", "the organ"),
        answer="{Who} plays {v}.",
        statements=("{Whose} instrument is {v}.", "{V} is what {who} plays.", "On feast days {who} brings {v}."),
        group="{names} play {v}.",
        questions=("What does {who} play?", "What is {whose} instrument?", "Which instrument does {who} play?"),
        follow_up="And which instrument does {who} play?",
    ),
    Attribute(
        name="fruit",
        values=("apples", "pears", "plums", "cherries", "grapes", "figs", "quinces", "berries"),
        answer="{Who} likes {v} best.",
        statements=(
            "{Whose} favourite fruit is {v}.",
            "{V} are what {who} likes to eat.",
            "{Who} never says no to {v}.",
        ),
        group="{names} like {v} best.",
        questions=(
            "Which fruit does {who} like best?",
            "What is {whose} favourite fruit?",
            "Which fruit should I give {whom}?",
        ),
        follow_up="And which fruit does {who} like best?",
    ),
)
TOWN = (
    Attribute(
        name="river",
        values=("the Elm", "the Swift", "the Grey", "the Lorn", "the Isk", "the Tarn"),
        answer="{Who} lies on {v}.",
        statements=("{Whose} river is {v}.", "{V} flows past {whom}.", "The bridge of {whom} crosses {v}."),
        group="{names} lie on {v}.",
        questions=("On which river does {who} lie?", "What is {whose} river?", "Which river flows past {whom}?"),
        follow_up="And which river flows past {whom}?",
    ),
    Attribute(
        name="product",
        values=("cheese", "honey", "paper", "glass", "rope", "cider"),
        answer="{Who} is known for its {v}.",
        statements=("{Whose} pride is its {v}.", "{V} is what {who} sells.", "People come to {whom} for the {v}."),
        group="{names} are known for their {v}.",
        questions=("What is {who} known for?", "What is {whose} pride?", "What does {who} sell?"),
        follow_up="And what is {who} known for?",
    ),
    Attribute(
        name="market",
        values=("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
        answer="{Who} holds its market on {v}.",
        statements=(
            "{Whose} market day is {v}.",
            "{V} is market day in {whom}.",
            "Go to {whom} on {v} to see the market.",
        ),
        group="{names} hold their markets on {v}.",
        questions=(
            "When does {who} hold its market?",
            "What is {whose} market day?",
            "On which day is the market in {whom}?",
        ),
        follow_up="And when does {who} hold its market?",
    ),
)
CRAFT = (
    Attribute(
        name="tool",
        values=tuple(tool for tool, _ in CRAFTS.values()),
        answer="{Who} uses {v}.",
        statements=("{Whose} tool is {v}.", "{V} is what {who} needs.", "Without {v}, {who} can do nothing."),
        group="{names} use {v}.",
        questions=("What does {who} use?", "What is {whose} tool?", "Which tool does {who} need?"),
        follow_up="And which tool does {who} need?",
    ),
    Attribute(
        name="material",
        values=tuple(material for _, material in CRAFTS.values()),
        answer="{Who} works with {v}.",
        statements=(
            "{Whose} material is {v}.",
            "From {v}, {who} makes a living.",
            "There is always {v} where {who} works.",
        ),
        group="{names} work with {v}.",
        questions=("What does {who} work with?", "What is {whose} material?", "Which material does {who} need?"),
        follow_up="And which material does {who} need?",
    ),
)
ANIMAL = (
    Attribute(
        name="food",
        values=tuple(food for food, _ in ANIMALS.values()),
        answer="{Who} eats {v}.",
        statements=("{Whose} food is {v}.", "Give {v} to {whom}.", "{Who} is fond of {v}."),
        group="{names} eat {v}.",
        questions=("What does {who} eat?", "What is {whose} food?", "What should I feed {whom}?"),
        follow_up="And what does {who} eat?",
    ),
    Attribute(
        name="shelter",
        values=tuple(shelter for _, shelter in ANIMALS.values()),
        answer="{Who} sleeps in {v}.",
        statements=("{Whose} shelter is {v}.", "{V} is where {who} sleeps.", "At night {who} rests in {v}."),
        group="{names} sleep in {v}.",
        questions=("Where does {who} sleep?", "What is {whose} shelter?", "Where does {who} spend the night?"),
        follow_up="And where does {who} sleep?",
    ),
)
