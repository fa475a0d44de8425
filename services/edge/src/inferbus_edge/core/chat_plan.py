"""A chat completion request as a plan."""

from inferbus.bus.v1.request_pb2 import ChatInput, ChatMessage, GenerateRequest, Sampling
from inferbus.common.v1.usage_pb2 import PriorityClass

from inferbus_edge.core.openai import ChatRequest
from inferbus_edge.core.plan import Need, Plan

# OpenAI's newer name for a role that chat templates of open models know as "system".
_ROLES = {"developer": "system"}
# A token has about four characters in most texts; only a limit's reservation hangs on it.
_CHARACTERS_PER_TOKEN = 4


def plan_chat(chat: ChatRequest) -> Plan:
    request = GenerateRequest(
        priority_class=PriorityClass.PRIORITY_CLASS_INTERACTIVE,
        chat=ChatInput(
            messages=[
                ChatMessage(role=_ROLES.get(one.role, one.role), content=one.text(), name=one.name or "")
                for one in chat.messages
            ]
        ),
        sampling=_sampling(chat),
    )
    return Plan(
        operation="chat",
        model=chat.model,
        stream=bool(chat.stream),
        requests=(request,),
        reply={"api": "chat", "n": 1, "plain": True, "include_usage": chat.include_usage},
        needs=(Need("chat", "model"),),
        input_estimate=sum(len(one.content) for one in request.chat.messages) // _CHARACTERS_PER_TOKEN,
        output_bound=chat.max_completion_tokens or chat.max_tokens,
    )


def _sampling(chat: ChatRequest) -> Sampling:
    # None leaves a field absent: the model's own default.
    return Sampling(
        temperature=chat.temperature,
        top_p=chat.top_p,
        top_k=None if chat.top_k is None else max(chat.top_k, 0),
        # OpenAI's seeds are signed; the same 64 bits name them on the bus.
        seed=None if chat.seed is None else chat.seed % (1 << 64),
        stop=chat.stop_texts,
        max_tokens=chat.max_completion_tokens or chat.max_tokens,
        frequency_penalty=chat.frequency_penalty,
        presence_penalty=chat.presence_penalty,
        repetition_penalty=chat.repetition_penalty,
    )
