/*
 * A load on libiscsi, as ordinary users of that library make it: every session in one thread under poll(2), each command
 * a task with its own callback.
 *
 * Usage: client PORTAL TARGET INITIATOR LUN BLOCKS SIZE DEPTH SESSIONS WRITE_PERCENT random|sequential WARM_UP_MS LENGTH_MS
 *
 * It logs in, runs for WARM_UP_MS, prints "start", runs for LENGTH_MS, prints "end" and
 * "done COMMANDS NANOSECONDS P50_NS P99_NS P999_NS", or "failed REASON". BLOCKS are of 512 bytes.
 */
#include <errno.h>
#include <signal.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

#define SESSIONS_MAX 16
#define SAMPLES_MAX (1 << 22)
#define PATIENCE_MS 30000

struct session {
	struct iscsi_context *iscsi;
	uint64_t next;
	int in_flight;
};

struct command {
	struct session *session;
	uint64_t started;
};

static struct session sessions[SESSIONS_MAX];
static uint64_t places, random_state = 0x9e3779b97f4a7c15u;
static uint32_t size;
static int lun, write_percent, sequential, measuring, stopping;
static unsigned char *data;
static uint32_t *samples;
static uint64_t done;

static void fail(struct iscsi_context *iscsi)
{
	const char *why = iscsi ? iscsi_get_error(iscsi) : NULL;

	printf("failed %s\n", why && *why ? why : "connection lost");
	fflush(stdout);
	exit(1);
}

static uint64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static uint64_t draw(void)
{
	random_state ^= random_state >> 12;
	random_state ^= random_state << 25;
	random_state ^= random_state >> 27;
	return random_state * 0x2545f4914f6cdd1du;
}

static void submit(struct session *session, struct command *command);

static void finished(struct iscsi_context *iscsi, int status, void *result, void *private_data)
{
	struct command *command = private_data;
	struct scsi_task *task = result;

	if (status != SCSI_STATUS_GOOD)
		fail(iscsi);
	if (measuring) {
		uint64_t took = now_ns() - command->started;

		samples[done++ % SAMPLES_MAX] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
	}
	scsi_free_scsi_task(task);
	command->session->in_flight--;
	if (stopping)
		free(command);
	else
		submit(command->session, command);
}

static void submit(struct session *session, struct command *command)
{
	uint64_t chance = draw(), place = sequential ? session->next++ % places : (chance >> 8) % places;
	uint64_t lba = place * (size / 512);
	struct scsi_task *task;

	command->started = now_ns();
	if ((int)(chance % 100) < write_percent)
		task = iscsi_write16_task(session->iscsi, lun, lba, data, size, 512, 0, 0, 0, 0, 0, finished, command);
	else
		task = iscsi_read16_task(session->iscsi, lun, lba, size, 512, 0, 0, 0, 0, 0, finished, command);
	if (!task)
		fail(session->iscsi);
	session->in_flight++;
}

static void turn(int count)
{
	struct pollfd fds[SESSIONS_MAX];

	for (int i = 0; i < count; i++) {
		fds[i].fd = iscsi_get_fd(sessions[i].iscsi);
		fds[i].events = (short)iscsi_which_events(sessions[i].iscsi);
		fds[i].revents = 0;
	}
	if (poll(fds, (nfds_t)count, PATIENCE_MS) <= 0 && errno != EINTR)
		fail(NULL);
	for (int i = 0; i < count; i++)
		if (fds[i].revents && iscsi_service(sessions[i].iscsi, fds[i].revents) < 0)
			fail(sessions[i].iscsi);
}

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static unsigned long percentile(uint64_t count, double part)
{
	uint64_t at = (uint64_t)((double)count * part);

	return count ? samples[at < count ? at : count - 1] : 0;
}

int main(int argc, char **argv)
{
	int depth, count;
	uint64_t start, warm_up, length, end, kept;

	if (argc != 13)
		return 2;
	/* A run that is cut short leaves nobody behind who tries for ever. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	lun = atoi(argv[4]);
	size = (uint32_t)atoi(argv[6]);
	places = strtoull(argv[5], NULL, 10) * 512 / size;
	depth = atoi(argv[7]);
	count = atoi(argv[8]);
	write_percent = atoi(argv[9]);
	sequential = strcmp(argv[10], "sequential") == 0;
	warm_up = strtoull(argv[11], NULL, 10) * 1000000u;
	length = strtoull(argv[12], NULL, 10) * 1000000u;
	data = calloc(1, size);
	samples = malloc(SAMPLES_MAX * sizeof(*samples));
	if (count > SESSIONS_MAX || !data || !samples)
		return 2;
	for (int i = 0; i < count; i++) {
		struct iscsi_context *iscsi = iscsi_create_context(argv[3]);
		struct scsi_task *task;

		sessions[i].iscsi = iscsi;
		sessions[i].next = places / (uint64_t)count * (uint64_t)i;
		iscsi_set_isid_random(iscsi, 0x4000u + (uint32_t)i, 0);
		iscsi_set_targetname(iscsi, argv[2]);
		iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
		if (iscsi_full_connect_sync(iscsi, argv[1], lun) != 0)
			fail(iscsi);
		for (int tries = 0; tries < 8; tries++) {
			task = iscsi_testunitready_sync(iscsi, lun);
			if (task && task->status == SCSI_STATUS_GOOD)
				tries = 8;
			if (task)
				scsi_free_scsi_task(task);
		}
	}
	start = now_ns();
	for (int i = 0; i < count; i++)
		for (int n = 0; n < depth; n++) {
			struct command *command = malloc(sizeof(*command));

			command->session = &sessions[i];
			submit(&sessions[i], command);
		}
	while (now_ns() - start < warm_up)
		turn(count);
	printf("start\n");
	fflush(stdout);
	measuring = 1;
	start = now_ns();
	while (now_ns() - start < length)
		turn(count);
	end = now_ns();
	printf("end\n");
	fflush(stdout);
	measuring = 0;
	stopping = 1;
	kept = done < SAMPLES_MAX ? done : SAMPLES_MAX;
	qsort(samples, kept, sizeof(*samples), compare);
	printf("done %llu %llu %lu %lu %lu\n", (unsigned long long)done, (unsigned long long)(end - start),
	       percentile(kept, 0.5), percentile(kept, 0.99), percentile(kept, 0.999));
	fflush(stdout);
	for (int i = 0; i < count; i++)
		while (sessions[i].in_flight)
			turn(count);
	for (int i = 0; i < count; i++) {
		iscsi_logout_sync(sessions[i].iscsi);
		iscsi_destroy_context(sessions[i].iscsi);
	}
	return 0;
}
