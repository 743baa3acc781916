"""The nouns and names that the generators share; short, so that most are one token."""

NAMES = (
    'Ada', 'Anna', 'Ben', 'Carl', 'Clara', 'Dan', 'David', 'Ella', 'Emil', 'Emma', 'Eva', 'Felix', 'Finn', 'Frida',
    'Greta', 'Hans', 'Hugo', 'Ida', 'Ines', 'Ivan', 'Jan', 'Jonas', 'Julia', 'Karl', 'Lea', 'Lena', 'Leo', 'Lina',
    'Lisa', 'Luis', 'Maja', 'Maria', 'Marta', 'Max', 'Mia', 'Mila', 'Nina', 'Noah', 'Nora', 'Olga', 'Otto', 'Paul',
    'Peter', 'Rosa', 'Ruth', 'Sara', 'Sofia', 'Tara', 'Theo', 'Tim', 'Tom', 'Uma', 'Vera', 'Yara')

# (one, several)
ITEMS = (
    ('apple', 'apples'), ('ball', 'balls'), ('book', 'books'), ('button', 'buttons'), ('cake', 'cakes'),
    ('card', 'cards'), ('coin', 'coins'), ('cup', 'cups'), ('egg', 'eggs'), ('flower', 'flowers'), ('hat', 'hats'),
    ('key', 'keys'), ('kite', 'kites'), ('lamp', 'lamps'), ('marble', 'marbles'), ('nut', 'nuts'), ('pear', 'pears'),
    ('pen', 'pens'), ('plum', 'plums'), ('ring', 'rings'), ('roll', 'rolls'), ('shell', 'shells'), ('stamp', 'stamps'),
    ('stone', 'stones'), ('toy', 'toys'))

CITIES = (
    'Basel', 'Berlin', 'Bern', 'Bonn', 'Bremen', 'Dresden', 'Dublin', 'Essen', 'Genoa', 'Ghent', 'Graz', 'Hamburg',
    'Kiel', 'Leeds', 'Leipzig', 'Lima', 'Linz', 'Lisbon', 'London', 'Lyon', 'Madrid', 'Mainz', 'Milan', 'Munich',
    'Nice', 'Oslo', 'Paris', 'Porto', 'Prague', 'Riga', 'Rome', 'Seville', 'Trier', 'Turin', 'Ulm', 'Vienna',
    'Warsaw', 'Weimar', 'York', 'Zurich')

JOBS = (
    'actor', 'artist', 'baker', 'barber', 'builder', 'butcher', 'carpenter', 'clerk', 'cook', 'dancer', 'dentist',
    'doctor', 'driver', 'editor', 'engineer', 'farmer', 'fisher', 'gardener', 'guard', 'judge', 'lawyer', 'miner',
    'nurse', 'painter', 'pilot', 'plumber', 'poet', 'porter', 'potter', 'printer', 'sailor', 'singer', 'smith',
    'soldier', 'tailor', 'teacher', 'waiter', 'weaver', 'welder', 'writer')

PETS = ('bird', 'cat', 'cow', 'dog', 'donkey', 'duck', 'fish', 'goat', 'goose', 'horse', 'mouse', 'parrot', 'rabbit',
        'sheep', 'snake', 'turtle')

FOODS = ('bread', 'butter', 'cake', 'cheese', 'chicken', 'curry', 'fruit', 'honey', 'ham', 'noodles', 'pasta', 'pizza',
         'rice', 'salad', 'soup', 'stew')
