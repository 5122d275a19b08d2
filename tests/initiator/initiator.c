/*
 * One initiator port under remote control, on libiscsi: what the tests need to send any CDB and to see exactly what the
 * target answered, Unit Attentions included (libiscsi's own tools hide those).
 *
 * Usage: initiator PORTAL TARGET INITIATOR_NAME ISID_NUMBER [USER PASSWORD [TARGET_USER TARGET_PASSWORD]]
 *
 * It logs in, prints "ok" or "failed REASON", then reads lines from standard input and answers each with one line:
 *   cdb LUN CDBHEX                  no data
 *   cdb LUN CDBHEX in BYTES         read
 *   cdb LUN CDBHEX out HEX          write
 *   cdb LUN CDBHEX fill BYTE COUNT  write COUNT bytes of one value
 *   lun-reset LUN | target-reset | abort-task-set LUN
 * Answers: "status=SS sense=K/AA/QQ in=HEX" (hex, sense 0/00/00 when there is none), "tmf=N", or "failed REASON" when the
 * session is gone. It never reconnects by itself. It ends at the end of its input, with a logout.
 */
#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <iscsi/iscsi.h>
#include <iscsi/scsi-lowlevel.h>

/*
 * A target that is silent for longer has failed the test. HOLDFAST_INITIATOR_PATIENCE_S says otherwise: then the path is to be left for
 * another one.
 */
static int patience_s = 60;

static struct iscsi_context *iscsi;

static void answer_failure(void)
{
	const char *why = iscsi_get_error(iscsi);

	printf("failed %s\n", why && *why ? why : "connection lost");
	fflush(stdout);
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Returns the number of bytes, or -1. */
static long from_hex(const char *text, unsigned char *out, size_t room)
{
	size_t n = 0;

	for (; text[0] && text[1]; text += 2, n++) {
		int high = hex_digit(text[0]), low = hex_digit(text[1]);

		if (high < 0 || low < 0 || n == room)
			return -1;
		out[n] = (unsigned char)(high << 4 | low);
	}
	return text[0] ? -1 : (long)n;
}

struct wait {
	int done;
	int status;
	uint32_t tmf_response;
};

static void finished(struct iscsi_context *context, int status, void *data, void *private_data)
{
	struct wait *wait = private_data;

	(void)context;
	wait->status = status;
	if (data)
		wait->tmf_response = *(uint32_t *)data;
	wait->done = 1;
}

static void command_finished(struct iscsi_context *context, int status, void *data, void *private_data)
{
	(void)data;
	finished(context, status, NULL, private_data);
}

/* Runs the event loop until the answer is there; 0 when it is, -1 when the session is lost. */
static int wait_for(struct wait *wait)
{
	while (!wait->done) {
		struct pollfd fd = { .fd = iscsi_get_fd(iscsi), .events = (short)iscsi_which_events(iscsi) };
		int ready = poll(&fd, 1, patience_s * 1000);

		if (ready < 0 && errno == EINTR)
			continue;
		if (ready <= 0 || iscsi_service(iscsi, fd.revents) < 0)
			return wait->done ? 0 : -1;
	}
	return 0;
}

static void command(int lun, unsigned char *cdb, int cdb_size, int direction, unsigned char *bytes, long length)
{
	struct scsi_task *task = scsi_create_task(cdb_size, cdb, direction, (int)length);
	struct iscsi_data out = { .data = bytes, .size = (size_t)length };
	struct wait wait = { 0 };

	if (!task || iscsi_scsi_command_async(iscsi, lun, task, command_finished,
					      direction == SCSI_XFER_WRITE ? &out : NULL, &wait) != 0 ||
	    wait_for(&wait) != 0 || wait.status == SCSI_STATUS_ERROR || wait.status == SCSI_STATUS_CANCELLED ||
	    wait.status == SCSI_STATUS_TIMEOUT) {
		answer_failure();
		return;
	}
	printf("status=%02x sense=%x/%02x/%02x in=", wait.status & 0xff,
	       wait.status == SCSI_STATUS_CHECK_CONDITION ? (unsigned)task->sense.key : 0,
	       wait.status == SCSI_STATUS_CHECK_CONDITION ? (unsigned)task->sense.ascq >> 8 & 0xff : 0,
	       wait.status == SCSI_STATUS_CHECK_CONDITION ? (unsigned)task->sense.ascq & 0xff : 0);
	/* With a CHECK CONDITION libiscsi keeps the sense bytes where data would be. */
	if (wait.status == SCSI_STATUS_GOOD && direction == SCSI_XFER_READ)
		for (int i = 0; i < task->datain.size; i++)
			printf("%02x", task->datain.data[i]);
	printf("\n");
	fflush(stdout);
	scsi_free_scsi_task(task);
}

static void task_management(enum iscsi_task_mgmt_funcs function, int lun)
{
	struct wait wait = { 0 };

	if (iscsi_task_mgmt_async(iscsi, lun, function, 0xffffffff, 0, finished, &wait) != 0 || wait_for(&wait) != 0 ||
	    wait.status != SCSI_STATUS_GOOD) {
		answer_failure();
		return;
	}
	printf("tmf=%u\n", wait.tmf_response);
	fflush(stdout);
}

static int serve(char *line)
{
	static unsigned char buffer[16 << 20];
	unsigned char cdb[SCSI_CDB_MAX_SIZE];
	char *save = NULL, *verb = strtok_r(line, " \n", &save);
	char *lun_text = strtok_r(NULL, " \n", &save);
	int lun = lun_text ? atoi(lun_text) : 0;

	if (!verb)
		return -1;
	if (!strcmp(verb, "lun-reset")) {
		task_management(ISCSI_TM_LUN_RESET, lun);
	} else if (!strcmp(verb, "target-reset")) {
		task_management(ISCSI_TM_TARGET_WARM_RESET, 0);
	} else if (!strcmp(verb, "abort-task-set")) {
		task_management(ISCSI_TM_ABORT_TASK_SET, lun);
	} else if (!strcmp(verb, "cdb")) {
		char *cdb_text = strtok_r(NULL, " \n", &save);
		char *kind = strtok_r(NULL, " \n", &save), *first = strtok_r(NULL, " \n", &save);
		char *second = strtok_r(NULL, " \n", &save);
		long size = cdb_text ? from_hex(cdb_text, cdb, sizeof(cdb)) : -1, length = 0;
		int direction = SCSI_XFER_NONE;

		if (size < 6)
			return -1;
		if (kind && !strcmp(kind, "in") && first) {
			direction = SCSI_XFER_READ;
			length = atol(first);
		} else if (kind && !strcmp(kind, "out") && first) {
			direction = SCSI_XFER_WRITE;
			length = from_hex(first, buffer, sizeof(buffer));
		} else if (kind && !strcmp(kind, "fill") && first && second) {
			direction = SCSI_XFER_WRITE;
			length = atol(second);
			if (length < 0 || (size_t)length > sizeof(buffer))
				return -1;
			memset(buffer, atoi(first), (size_t)length);
		} else if (kind) {
			return -1;
		}
		if (length < 0)
			return -1;
		command(lun, cdb, (int)size, direction, buffer, length);
	} else {
		return -1;
	}
	return 0;
}

int main(int argc, char **argv)
{
	char *line = NULL;
	size_t room = 0;

	if (argc != 5 && argc != 7 && argc != 9) {
		fprintf(stderr, "usage: %s PORTAL TARGET INITIATOR_NAME ISID_NUMBER [USER PASSWORD [TARGET_USER "
				"TARGET_PASSWORD]]\n", argv[0]);
		return 2;
	}
	if (getenv("HOLDFAST_INITIATOR_PATIENCE_S") && atoi(getenv("HOLDFAST_INITIATOR_PATIENCE_S")) > 0)
		patience_s = atoi(getenv("HOLDFAST_INITIATOR_PATIENCE_S"));
	iscsi = iscsi_create_context(argv[3]);
	if (!iscsi)
		return 1;
	iscsi_set_noautoreconnect(iscsi, 1);
	iscsi_set_timeout(iscsi, patience_s);
	iscsi_set_session_type(iscsi, ISCSI_SESSION_NORMAL);
	iscsi_set_header_digest(iscsi, ISCSI_HEADER_DIGEST_NONE_CRC32C);
	/* The ISID is part of the initiator port's name: the same one again is the same port. */
	iscsi_set_isid_random(iscsi, (uint32_t)atoi(argv[4]), 0);
	if (argc >= 7)
		iscsi_set_initiator_username_pwd(iscsi, argv[5], argv[6]);
	if (argc == 9)
		iscsi_set_target_username_pwd(iscsi, argv[7], argv[8]);
	if (iscsi_set_targetname(iscsi, argv[2]) || iscsi_connect_sync(iscsi, argv[1]) || iscsi_login_sync(iscsi)) {
		answer_failure();
		return 1;
	}
	printf("ok\n");
	fflush(stdout);
	while (getline(&line, &room, stdin) > 0)
		if (serve(line)) {
			printf("failed not understood\n");
			fflush(stdout);
		}
	iscsi_logout_sync(iscsi);
	iscsi_destroy_context(iscsi);
	free(line);
	return 0;
}
