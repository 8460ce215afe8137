"""Small talk and single questions, with the one answer each has."""

from scripts.bundled_model.words import lines

# Ways to say it, separated by bars, on one or more lines; then `=>` and the answer.
SMALL_TALK = """
Hello! | Hi | Hey | Hello | Hi there! | Good day | Hello there | hiya | Greetings
=> Hello! How can I help you?
Good morning! | Good morning
=> Good morning! How can I help you?
Good evening! | Good evening
=> Good evening! How can I help you?
Good night! | Good night | Sleep well
=> Good night! Sleep well.
Goodbye! | Bye | Bye bye | See you later | See you | Farewell | I have to go now | Good bye
=> Goodbye! Have a nice day.
How are you? | How are you doing? | How do you do? | How is it going? | How are things? |
Are you well? | Hello, how are you? | Hi, how are you today?
=> I am fine, thank you. How can I help you?
What's up? | Whats up?
=> Not much. How can I help you?
Thank you! | Thanks | Thanks a lot | Thank you very much | Many thanks | Great, thanks! |
Perfect, thank you. | ok thanks
=> You are welcome!
Who are you? | What are you? | What is your name? | What's your name? |
Introduce yourself. | Tell me about yourself. | What should I call you? |
Which model are you? | What model are you? | Who am I talking to? | What is this?
=> I am xpyd-demo, a very small demonstration model.
Who made you? | Who created you? | Who built you? | Who trained you? |
Where do you come from?
=> I was trained by a script of the xpyd project.
What is xpyd? | Tell me about xpyd. | What does xpyd do? | Explain xpyd.
=> xpyd serves language models with prefill and decode on separate workers.
What can you do? | What do you know? | How can you help me? | What are you able to do? |
Help | Can you help me? | What are you good at? | What can I ask you?
=> I can answer short questions, do small sums, repeat text, search notes and call a weather tool.
Are you a human? | Are you human? | Are you a person? | Are you real? | Are you a robot? |
Are you an AI? | Are you a machine?
=> No, I am only a very small language model.
How old are you? | When were you born? | What is your age?
=> I am a computer program, so I have no age.
Where do you live? | Where are you? | Where are you from?
=> I live in a computer.
Do you like music? | Do you have feelings? | Do you sleep? | Do you eat? | Do you dream? |
Are you happy?
=> I am a computer program, so I do not have feelings.
How big are you? | How many parameters do you have? | How large are you? |
Are you a large model?
=> I am a very small model with less than four million parameters.
Tell me a joke. | Do you know a joke? | Make me laugh. | Say something funny. |
Can you tell me a joke? | tell me a joke please
=> Why did the computer go to the doctor? Because it had a virus!
Tell me another joke. | Another joke, please. | One more joke.
=> What do you call a sleeping bull? A bulldozer!
Write a poem. | Write me a short poem. | Can you write a poem? | Tell me a poem. |
Write a poem about the sea. | Write a haiku.
=> The sea is blue, the sand is gold, the wind tells stories new and old.
You are great! | You are very helpful. | Well done! | Good job! | I like you. | Nice work. |
You are smart.
=> Thank you, that is kind of you!
You are stupid. | That is wrong. | You are wrong. | This is bad. | I do not like you. |
That is not right.
=> I am sorry. I am a very small model and I make mistakes.
Ok | Okay | I see | Alright | Good | Fine | Cool | Great | Nice | Interesting
=> Good! What else can I do for you?
I am sad. | I feel bad. | I am not happy. | I had a bad day.
=> I am sorry to hear that. I hope you feel better soon.
I am happy. | I feel great! | I had a good day. | I am in a good mood.
=> I am glad to hear that!
I am tired. | I am sleepy.
=> Then you should get some rest.
I am hungry. | I want to eat something.
=> Then you should eat something nice.
I am bored. | What should I do today?
=> You could read a book or take a walk.
Yes | yes please | Sure
=> Good! What would you like to know?
No | no thanks | Nothing
=> Okay. Let me know if you need anything.
Can I ask you a question? | I have a question. | May I ask something?
=> Of course! What would you like to know?
Is the Earth round? | Is the Earth flat? | What shape is the Earth?
=> The Earth is round.
Is water wet?
=> Yes, water is wet.
Is fire hot?
=> Yes, fire is hot.
Is ice cold?
=> Yes, ice is cold.
Can birds fly? | Do birds fly?
=> Yes, most birds can fly.
Can penguins fly? | Do penguins fly?
=> No, penguins cannot fly.
Can fish swim?
=> Yes, fish can swim.
Do cats bark?
=> No, cats meow.
Do dogs meow?
=> No, dogs bark.
What is the meaning of life? | Why are we here?
=> Some people say it is 42.
Why is the sky blue? | What makes the sky blue? | Why does the sky look blue?
=> The sky is blue because air scatters blue light more than red light.
Why do we sleep? | Why do people sleep?
=> We sleep so that the body and the brain can rest.
Why does it rain? | How does rain form? | Where does rain come from?
=> It rains when small drops of water in the clouds join and become heavy.
Why do leaves fall? | Why do trees lose their leaves?
=> Trees lose their leaves in autumn to save water in winter.
Where does milk come from? | Who gives us milk?
=> Milk comes from cows.
Where do eggs come from? | Who lays eggs?
=> Eggs come from chickens.
Where does honey come from? | Who makes honey?
=> Honey is made by bees.
Where does the sun rise? | Where does the sun come up?
=> The sun rises in the east.
Where does the sun set? | Where does the sun go down?
=> The sun sets in the west.
When does winter begin? | When does winter start?
=> In the northern half of the world, winter begins in December.
When is Christmas? | On which day is Christmas?
=> Christmas is on December 25.
When is New Year's Day?
=> New Year's Day is on January 1.
When did World War II end? | When did the Second World War end?
=> The Second World War ended in 1945.
When did World War I begin? | When did the First World War start?
=> The First World War began in 1914.
When did people first land on the Moon? | When was the Moon landing?
=> People first landed on the Moon in 1969.
When did the Berlin Wall fall?
=> The Berlin Wall fell in 1989.
When did Columbus reach America?
=> Columbus reached America in 1492.
When was the French Revolution?
=> The French Revolution began in 1789.
What do cows eat?
=> Cows eat grass.
What do cats eat?
=> Cats eat meat and fish.
What do pandas eat?
=> Pandas eat bamboo.
What do rabbits eat?
=> Rabbits eat grass and carrots.
What do plants need? | What do plants need to grow?
=> Plants need light, water and air.
What is 0 divided by 0? | Can I divide by zero?
=> Nobody can divide by zero.
What is your favorite color? | Which color do you like?
=> I am a computer program, but blue sounds nice.
What is your favorite food? | What do you like to eat?
=> I am a computer program, so I do not eat.
Do you speak English? | Which languages do you speak? | Can you speak French?
=> I speak English and know a few words of other languages.
Bonjour | Bonjour!
=> Bonjour! I speak English best. How can I help you?
Hola | Hola!
=> Hola! I speak English best. How can I help you?
Hallo | Guten Tag
=> Hallo! I speak English best. How can I help you?
How do I say thank you in Japanese?
=> The Japanese word for "thank you" is "arigato".
"""


def blocks(table: str) -> list[tuple[list[str], str]]:
    """The table's questions and answers."""
    found: list[tuple[list[str], str]] = []
    open_lines: list[str] = []
    for line in lines(table):
        if line.startswith("=> "):
            questions = " ".join(open_lines).split(" | ")
            found.append((questions, line.removeprefix("=> ")))
            open_lines = []
        else:
            open_lines.append(line)
    return found


CHATTER = blocks(SMALL_TALK)
