/* What a C program with hiredis does; run with the client ports of three nodes. */

#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void must(int holds, const char *what, const redisReply *reply) {
    if (holds) return;
    fprintf(stderr, "%s: %s\n", what, reply == NULL ? "no reply" : reply->str == NULL ? "(no text)" : reply->str);
    exit(1);
}

static void says(redisContext *c, int type, const char *text, redisReply *r) {
    must(r != NULL && r->type == type && (text == NULL || strcmp(r->str, text) == 0), c->errstr[0] ? c->errstr : "reply", r);
    freeReplyObject(r);
}

static redisReply *next(redisContext *c) {
    void *reply = NULL;
    must(redisGetReply(c, &reply) == REDIS_OK, c->errstr, NULL);
    return reply;
}

static void talk(int port, int other) {
    redisContext *c = redisConnect("127.0.0.1", port), *o = redisConnect("127.0.0.1", other);
    must(c != NULL && c->err == 0 && o != NULL && o->err == 0, "connect", NULL);
    says(c, REDIS_REPLY_STATUS, "PONG", redisCommand(c, "PING"));
    says(c, REDIS_REPLY_STATUS, "OK", redisCommand(c, "SET %s %b", "c:key", "a value", (size_t)7));
    for (int n = 0; n < 3; n++) says(o, REDIS_REPLY_STRING, "a value", redisCommand(o, "GET c:key"));
    says(c, REDIS_REPLY_NIL, NULL, redisCommand(c, "GET c:nothing"));
    for (int n = 0; n < 100; n++) redisAppendCommand(c, "SET c:%d %d", n, n);
    for (int n = 0; n < 100; n++) redisAppendCommand(c, "GET c:%d", n);
    for (int n = 0; n < 100; n++) says(c, REDIS_REPLY_STATUS, "OK", next(c));
    for (int n = 0; n < 100; n++) {
        char text[8];
        snprintf(text, sizeof text, "%d", n);
        says(c, REDIS_REPLY_STRING, text, next(c));
    }
    says(c, REDIS_REPLY_STATUS, "OK", redisCommand(c, "MULTI"));
    says(c, REDIS_REPLY_STATUS, "QUEUED", redisCommand(c, "SET {c}a 1"));
    says(c, REDIS_REPLY_STATUS, "QUEUED", redisCommand(c, "INCR {c}a"));
    redisReply *r = redisCommand(c, "EXEC");
    must(r != NULL && r->type == REDIS_REPLY_ARRAY && r->elements == 2, "EXEC", r);
    must(r->element[1]->type == REDIS_REPLY_INTEGER && r->element[1]->integer == 2, "INCR in EXEC", r);
    freeReplyObject(r);
    r = redisCommand(c, "INCR c:key");
    must(r != NULL && r->type == REDIS_REPLY_ERROR && strstr(r->str, "not an integer") != NULL, "INCR of a text", r);
    freeReplyObject(r);
    redisFree(c);
    redisFree(o);
}

int main(int argc, char **argv) {
    for (int n = 1; n < argc; n++) talk(atoi(argv[n]), atoi(argv[n + 1 < argc ? n + 1 : 1]));
    puts("all is well");
    return 0;
}
