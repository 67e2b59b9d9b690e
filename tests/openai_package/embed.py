"""Asks for embeddings by the `openai` package, unmodified.

Usage: python embed.py URL < requests. Each line is the JSON of the arguments of `embeddings.create`; each printed line
is the answer, or the class and the fields of the error.
"""

import json
import sys

import openai

client = openai.OpenAI(base_url=f"{sys.argv[1]}/v1", api_key=sys.argv[2], max_retries=0)
for line in sys.stdin:
    try:
        answer = client.embeddings.create(**json.loads(line))
    except openai.APIStatusError as error:
        told = {"class": type(error).__name__, "message": error.message, "param": error.param, "code": error.code}
        told |= {"type": error.type, "status": error.status_code}
    else:
        told = answer.model_dump()
    print(json.dumps(told))
