import json
# longer prompts than 32 tokens
rows=[json.loads(l) for l in open('/tmp/r2/mc.jsonl')]
text=json.loads(open('/tmp/r2/shards/corpus.jsonl').read().splitlines()[-1])['text'].split()
for i,r in enumerate(rows): r['query']=" ".join(text[i*12:i*12+18])
open('/tmp/r2/mclong.jsonl','w').write("".join(json.dumps(r)+"\n" for r in rows))
